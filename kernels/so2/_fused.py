"""Convolutions in edge frames on CPUs: C++ rotations and torch's matrix products in chunks.

A chunk's frames are made, multiplied and rotated back while they are in the cache. Of the forward
pass only the messages before they are rotated back are kept, and only if the gradient in the edge
vectors is wanted; frames and rotations are made again. The maps of one order are three products
instead of four, as complex numbers are multiplied:

    k = (y+ + y-) A,    out+ = k - y- (A + B),    out- = k + y+ (B - A)

The second gradient is taken by autograd of the differentiable ops, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqtp.autograd import as_own_nodes, wanted_gradients
from eqtp.graph import Graph
from eqtp.kernels.codegen import memory
from eqtp.kernels.so2 import _cpu, _ops
from eqtp.kernels.so2 import _linear as linear_form
from eqtp.kernels.so2._cpu_linear import Products, WeightSums, apply, apply_back, orders
from eqtp.kernels.so2.config import fused_chunk_rows
from eqtp.kernels.so2.edges import Side, side_of, sides_of
from eqtp.kernels.so2.frames import FrameLayout
from eqtp.kernels.so2.op import scaled

__all__ = ["convolution", "serves"]


@dataclass(frozen=True)
class Where:
    """What a convolution reads besides its operands."""

    frame_in: FrameLayout
    frame_out: FrameLayout
    senders: Side
    receivers: Side
    num_dst: int
    linear: linear_form.Where

    def chunks(self, side: Side) -> Iterator[Tensor]:
        """Numbers of the edges, sorted by a side's node."""
        return iter(side.edge.split(fused_chunk_rows(self.frame_in, self.frame_out)))


def serves(operands: Sequence[Tensor]) -> bool:
    """Whether tensors are of a dtype and in no transform that only the ops know."""
    return (
        len({t.dtype for t in operands}) == 1
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
    )


def convolution(
    x: Tensor,
    vectors: Tensor,
    scale: Tensor | None,
    weights: Sequence[Tensor],
    frame_in: FrameLayout,
    frame_out: FrameLayout,
    graph: Graph | None,
) -> Tensor:
    """`so2_convolution` of checked operands in layout "ir_mul", with shared weights."""
    if graph is None:
        rows = torch.arange(len(vectors))
        senders = receivers = Side(rows, rows, rows)
        num_dst = len(vectors)
    else:
        edges = sides_of(graph)
        sender, receiver = side_of(edges, False), side_of(edges, True)
        assert sender is not None
        assert receiver is not None
        senders, receivers, num_dst = sender, receiver, graph.num_dst
    parts = tuple(len(weight) for weight in weights)
    maps = linear_form.Where(frame_in, frame_out, parts, "cpu")
    where = Where(frame_in, frame_out, senders, receivers, num_dst, maps)
    operands = [t if t is None else t.contiguous() for t in (x, vectors, scale, *weights)]
    out: Tensor = _Convolution.apply(where, *operands)  # type: ignore[no-untyped-call]
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, where: Where, x: Tensor, r: Tensor, scale: Tensor | None, *weights: Tensor
    ) -> Tensor:
        messages = None
        if ctx.needs_input_grad[2]:
            messages = memory.empty(x, len(r), where.frame_out.dim)
        out = _forward(where, x, r, scale, weights, messages)
        ctx.where = where
        ctx.save_for_backward(x, r, scale, *weights)
        ctx.messages = messages  # an intermediate: not an operand and not a result
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        wanted = wanted_gradients(ctx, operands)
        arguments = (g.contiguous(), *operands)
        grads = _Gradient.apply(ctx.where, wanted, [ctx.messages], *arguments)  # type: ignore[no-untyped-call]
        remaining = iter(grads)
        return (None, *(next(remaining) if want else None for want in wanted))


class _Gradient(torch.autograd.Function):
    """Gradients of <g, out> in x, r, scale and the weights, those that are wanted.

    The messages come in a list: they are no operand.
    """

    @staticmethod
    def forward(
        ctx: Any, where: Where, wanted: Sequence[bool], kept: list[Tensor | None], *operands: Any
    ) -> tuple[Tensor, ...]:
        ctx.where, ctx.wanted = where, wanted
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
        g, x, r, scale, *weights = operands
        grads = _gradient(where, wanted, kept[0], g, x, r, scale, weights)
        return tuple(grad for grad in grads if grad is not None)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        remaining = iter(directions)
        spread = [next(remaining) if want else None for want in ctx.wanted]
        needed = wanted_gradients(ctx, operands)
        return None, None, None, *_second_gradient(ctx.where, spread, operands, needed)


def _forward(
    where: Where,
    x: Tensor,
    r: Tensor,
    scale: Tensor | None,
    weights: Sequence[Tensor],
    messages: Tensor | None,
) -> Tensor:
    products = [Products.of(weight) for weight in weights]
    out = x.new_zeros(where.num_dst, where.frame_out.irreps.dim)
    size = fused_chunk_rows(where.frame_in, where.frame_out)
    y_buffer = x.new_empty(min(size, len(r)), where.frame_in.dim)
    buffer = None
    if messages is None:
        buffer = x.new_empty(min(size, len(r)), where.frame_out.dim)
    start = 0
    for edge in where.chunks(where.receivers):
        y = y_buffer[: len(edge)]
        _cpu.rotate_chunk(x, r, where.senders.node, edge, y, where.frame_in)
        if scale is not None:
            _scale(y, scale[edge], where.frame_in)
        if messages is not None:
            message = messages[start : start + len(edge)]
        else:
            assert buffer is not None
            message = buffer[: len(edge)]
        apply(y, message, products, where.linear)
        _cpu.rotate_back_chunk(
            message, r, where.receivers.node, edge, None, out, None, where.frame_out
        )
        start += len(edge)
    return out


def _gradient(
    where: Where,
    wanted: Sequence[bool],
    messages: Tensor | None,
    g: Tensor,
    x: Tensor,
    r: Tensor,
    scale: Tensor | None,
    weights: Sequence[Tensor],
) -> list[Tensor | None]:
    want_x, want_r, want_scale, *want_weights = wanted
    products = [Products.of(weight) for weight in weights]
    sums = WeightSums.zeros(x, where.linear) if any(want_weights) else []
    grad_x = torch.zeros_like(x) if want_x else None
    torques = r.new_empty(r.shape) if want_r else None
    grad_scale = None if scale is None or not want_scale else torch.empty_like(scale)
    want_frames = grad_scale is not None or any(want_weights)
    size = min(fused_chunk_rows(where.frame_in, where.frame_out), len(r))
    buffers = [x.new_empty(size, f.dim) for f in (where.frame_in, where.frame_out, where.frame_in)]
    for edge in where.chunks(where.senders):
        y, message, grad = (buffer[: len(edge)] for buffer in buffers)
        _cpu.rotate_chunk(g, r, where.receivers.node, edge, message, where.frame_out)
        factors = None if scale is None else scale[edge]
        if want_frames:
            _cpu.rotate_chunk(x, r, where.senders.node, edge, y, where.frame_in)
        if want_x or want_r or grad_scale is not None:
            apply_back(message, grad, products, where.linear)
            if grad_scale is not None:
                grad_scale[edge] = _pair(y, grad, where.frame_in)
            if factors is not None:
                _scale(grad, factors, where.frame_in)
        if any(want_weights):
            if factors is not None:
                _scale(y, factors, where.frame_in)
            pairs = zip(
                sums, orders(y, where.frame_in), orders(message, where.frame_out), strict=True
            )
            for total, ys, gs in pairs:
                total.add(ys, gs)
        if want_x or want_r:
            _cpu.rotate_back_chunk(
                grad,
                r,
                where.senders.node,
                edge,
                x if want_r else None,
                grad_x,
                torques,
                where.frame_in,
            )
    grad_r = None
    if torques is not None:
        assert messages is not None
        others = torch.empty_like(torques)
        side = where.receivers
        _cpu.rotate_back_chunk(messages, r, side.node, side.edge, g, None, others, where.frame_out)
        grad_r = _ops.vector_gradient(r, torques + others)
    grads: list[Tensor | None] = [total.gradient() for total in sums] or [None] * len(weights)
    chosen = [grad if want else None for grad, want in zip(grads, want_weights, strict=True)]
    return [grad_x, grad_r, grad_scale, *chosen]


def _scale(y: Tensor, scale: Tensor, frame: FrameLayout) -> None:
    """Multiplies frames in place."""
    parts = scale.split([frame.width(m) for m in range(frame.m_max + 1)], 1)
    for ys, part in zip(orders(y, frame), parts, strict=True):
        for order in ys:
            order.mul_(part)


def _pair(y: Tensor, g: Tensor, frame: FrameLayout) -> Tensor:
    """The gradient of the scale: products summed over +m and -m."""
    parts = []
    for ys, gs in zip(orders(y, frame), orders(g, frame), strict=True):
        part = ys[0] * gs[0]
        if len(ys) == 2:
            part.addcmul_(ys[1], gs[1])
        parts.append(part)
    return torch.cat(parts, 1)


def _second_gradient(
    where: Where,
    directions: Sequence[Tensor | None],
    operands: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of sum_s <direction_s, gradient_s> in g, x, r, scale and the weights.

    Where a third derivative may follow everything is one differentiable piece, else chunks.
    """
    if not any(needed) or all(direction is None for direction in directions):
        return [None] * len(operands)
    create_graph = torch.is_grad_enabled()
    chunks = [where.receivers.edge] if create_graph else where.chunks(where.receivers)
    totals: list[Tensor | None] = [None] * len(operands)
    for edge in chunks:
        nodes = {0: where.receivers.node[edge], 1: where.senders.node[edge], 2: edge, 3: edge}
        with torch.enable_grad():
            own = [t if t is None or create_graph else t.detach() for t in operands]
            leaves = [t if t is None else as_own_nodes(t)[0] for t in own]
            rows = [_rows(t, nodes.get(slot)) for slot, t in enumerate(leaves)]
            along = [_rows(t, nodes.get(slot)) for slot, t in enumerate(directions, 1)]
            pairing = _pairing(where, rows, along)
            chosen = [t for t, need in zip(rows, needed, strict=True) if need and t is not None]
            found = iter(
                torch.autograd.grad(pairing, chosen, create_graph=create_graph, allow_unused=True)
            )
        for slot, need in enumerate(needed):
            grad = next(found) if need else None
            if grad is not None:
                totals[slot] = _added(totals[slot], grad, operands[slot], nodes.get(slot))
    return totals


def _rows(t: Tensor | None, nodes: Tensor | None) -> Tensor | None:
    """What a chunk reads of an operand: rows of its nodes or edges, or all of the weights."""
    if t is None or nodes is None:
        return t
    return t.index_select(0, nodes)


def _pairing(where: Where, rows: Sequence[Tensor | None], along: Sequence[Tensor | None]) -> Tensor:
    """The sum over operands of <direction, gradient> for the rows of a chunk."""
    g, *operands = rows
    slots = [slot for slot, direction in enumerate(along) if direction is not None]
    messages = _messages(where, *operands)  # type: ignore[arg-type]
    inputs = [operands[slot] for slot in slots]
    grads = torch.autograd.grad(messages, inputs, g, create_graph=True)  # type: ignore[arg-type]
    total = messages.new_zeros(())
    for slot, grad in zip(slots, grads, strict=True):
        direction = along[slot]
        assert direction is not None
        total = total + (grad * direction).sum()
    return total


def _messages(where: Where, x: Tensor, r: Tensor, scale: Tensor | None, *weights: Tensor) -> Tensor:
    """The messages of rows, by differentiable ops."""
    y = _ops.rotate(x, r, None, ([], False, where.frame_in.text, "cpu"))
    if scale is not None:
        y = scaled(y, scale, where.frame_in)
    y = linear_form.linear(y, weights, where.linear)
    return _ops.rotate_back(y, r, None, ([], True, where.frame_out.text, "cpu"), len(r))


def _added(
    total: Tensor | None, grad: Tensor, operand: Tensor | None, nodes: Tensor | None
) -> Tensor:
    """The sum so far and the gradient of a chunk, at its rows."""
    if nodes is None:
        return grad if total is None else total + grad
    if total is None:
        assert operand is not None
        total = torch.zeros_like(operand)
    return (
        total.index_add(0, nodes, grad) if grad.requires_grad else total.index_add_(0, nodes, grad)
    )
