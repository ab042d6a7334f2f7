"""Radial factors and gates in the frames of edges. Definition: reference.py.

In plain torch each is a dozen passes over the edges' numbers once training on forces has
differentiated it twice; here each derivative is one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.autograd import as_own_nodes, wanted_gradients
from eqtp.kernels.codegen.availability import cpu_serves
from eqtp.kernels.frame_gate import _cpu, reference
from eqtp.kernels.frame_gate.reference import FrameSizes

__all__ = ["gate_orders", "scale_orders"]


def scale_orders(
    y: Float[Tensor, "edges dim"], radial: Float[Tensor, "edges radial_dim"], sizes: FrameSizes
) -> list[Tensor]:
    """Numbers in frames times factors that +m and -m share, order by order.

        z_+-m = y_+-m radial_m

    Twice differentiable in one pass each, and to any order by the definition.

    Args:
        y: Numbers of the edges, ordered by m.
        radial: Factors: for each m its degrees' channels.
        sizes: Sizes of the frames.

    Returns:
        For m = 0 ... m_max a tensor [edges, 1 or 2 signs, width of m].

    Raises:
        ValueError: Shapes disagree with `sizes`.

    Example:
        >>> sizes = FrameSizes(lmax=1, m_max=1, channels=2)
        >>> [z.shape[1:] for z in scale_orders(torch.ones(3, 8), torch.ones(3, 6), sizes)]
        [torch.Size([1, 4]), torch.Size([2, 2])]
    """
    if y.shape[1:] != (sizes.dim,) or radial.shape != (len(y), sizes.radial_dim):
        raise ValueError(
            f"y must be [edges, {sizes.dim}] and radial [edges, {sizes.radial_dim}] ({sizes}), got "
            f"{tuple(y.shape)} and {tuple(radial.shape)}"
        )
    if not cpu_serves(y, radial):
        return reference.scale_orders(y, radial, sizes)
    return list(_Scale.apply(sizes, y, radial))  # type: ignore[no-untyped-call]


def gate_orders(
    hidden: Sequence[Tensor], factor: Float[Tensor, " edges"], sizes: FrameSizes
) -> list[Tensor]:
    """Activated scalars and gated degrees, times a factor of the edge.

        z_00 = silu(h_00) factor,    z_lm = h_lm sigmoid(gate_l) factor   for l > 0

    Twice differentiable in one pass each, and to any order by the definition.

    Args:
        hidden: For m = 0 ... m_max a tensor [edges, signs, width of m]; that of m = 0 has
            `sizes.gates_dim` more columns, which are the gates.
        factor: Factor of each edge.
        sizes: Sizes of the frames.

    Returns:
        The same tensors without the gates.

    Raises:
        ValueError: Shapes disagree with `sizes`.

    Example:
        >>> sizes = FrameSizes(lmax=1, m_max=0, channels=2)
        >>> gate_orders([torch.zeros(3, 1, 6)], torch.ones(3), sizes)[0].shape
        torch.Size([3, 1, 4])
    """
    shapes = [(len(factor), 2, width) for width in sizes.widths]
    shapes[0] = (len(factor), 1, sizes.widths[0] + sizes.gates_dim)
    if [tuple(h.shape) for h in hidden] != shapes:
        got = [tuple(h.shape) for h in hidden]
        raise ValueError(f"hidden must have the shapes {shapes} ({sizes}), got {got}")
    if not cpu_serves(factor, *hidden):
        return reference.gate_orders(hidden, factor, sizes)
    return list(_Gate.apply(sizes, factor, *hidden))  # type: ignore[no-untyped-call]


class _Scale(torch.autograd.Function):
    """z(y, radial)."""

    @staticmethod
    def forward(ctx: Any, sizes: FrameSizes, y: Tensor, radial: Tensor) -> tuple[Tensor, ...]:
        y, radial = y.contiguous(), radial.contiguous()
        ctx.sizes = sizes
        ctx.save_for_backward(y, radial)
        return tuple(_cpu.scale(y, radial, sizes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, radial = ctx.saved_tensors
        return None, *_ScaleGradient.apply(ctx.sizes, y, radial, *grads)  # type: ignore[no-untyped-call]


class _ScaleGradient(torch.autograd.Function):
    """Gradients of <g, z(y, radial)> in y and radial."""

    @staticmethod
    def forward(
        ctx: Any, sizes: FrameSizes, y: Tensor, radial: Tensor, *grads: Tensor
    ) -> tuple[Tensor, Tensor]:
        contiguous = [g.contiguous() for g in grads]
        ctx.sizes = sizes
        ctx.save_for_backward(y, radial, *contiguous)
        return _cpu.scale_gradient(y, radial, contiguous, sizes)

    @staticmethod
    def backward(ctx: Any, v_y: Tensor, v_radial: Tensor) -> Any:
        operands = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_by_definition(ctx, _scale_gradient, operands, (v_y, v_radial))
        y, radial, *grads = operands
        v = v_y.contiguous(), v_radial.contiguous()
        to_y, to_radial, to_grads = _cpu.scale_second(y, radial, grads, *v, ctx.sizes)
        return None, to_y, to_radial, *to_grads


class _Gate(torch.autograd.Function):
    """z(factor, hidden)."""

    @staticmethod
    def forward(ctx: Any, sizes: FrameSizes, factor: Tensor, *hidden: Tensor) -> tuple[Tensor, ...]:
        factor, hidden = factor.contiguous(), tuple(h.contiguous() for h in hidden)
        ctx.sizes = sizes
        ctx.save_for_backward(factor, *hidden)
        return tuple(_cpu.gate(hidden, factor, sizes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        factor, *hidden = ctx.saved_tensors
        return None, *_GateGradient.apply(ctx.sizes, factor, *hidden, *grads)  # type: ignore[no-untyped-call]


class _GateGradient(torch.autograd.Function):
    """Gradients of <g, z(factor, hidden)> in factor and hidden."""

    @staticmethod
    def forward(
        ctx: Any, sizes: FrameSizes, factor: Tensor, *hidden_and_grads: Tensor
    ) -> tuple[Tensor, ...]:
        tensors = [tensor.contiguous() for tensor in hidden_and_grads]
        ctx.sizes = sizes
        ctx.save_for_backward(factor, *tensors)
        half = len(tensors) // 2
        to_factor, to_hidden = _cpu.gate_gradient(tensors[:half], factor, tensors[half:], sizes)
        return to_factor, *to_hidden

    @staticmethod
    def backward(ctx: Any, v_factor: Tensor, *v_hidden: Tensor) -> Any:
        operands = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_by_definition(ctx, _gate_gradient, operands, (v_factor, *v_hidden))
        factor, *tensors = operands
        half = len(tensors) // 2
        to_factor, to_hidden, to_grads = _cpu.gate_second(
            tensors[:half],
            factor,
            tensors[half:],
            v_factor.contiguous(),
            [v.contiguous() for v in v_hidden],
            ctx.sizes,
        )
        return None, to_factor, *to_hidden, *to_grads


def _scale_gradient(sizes: FrameSizes, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    y, radial, *grads = operands
    z = reference.scale_orders(y, radial, sizes)
    return torch.autograd.grad(z, [y, radial], grads, create_graph=True)


def _gate_gradient(sizes: FrameSizes, operands: Sequence[Tensor]) -> Sequence[Tensor]:
    factor, *tensors = operands
    half = len(tensors) // 2
    hidden, grads = tensors[:half], tensors[half:]
    z = reference.gate_orders(hidden, factor, sizes)
    return torch.autograd.grad(z, [factor, *hidden], grads, create_graph=True)


def _by_definition(
    ctx: Any,
    gradient: Callable[[FrameSizes, Sequence[Tensor]], Sequence[Tensor]],
    operands: Sequence[Tensor],
    v: Sequence[Tensor],
) -> Sequence[Tensor | None]:
    """Gradients of <v, gradient(operands)> in the operands, differentiable again."""
    wanted = wanted_gradients(ctx, operands)
    nodes = as_own_nodes(*operands)
    found = torch.autograd.grad(
        gradient(ctx.sizes, nodes), nodes, v, create_graph=True, materialize_grads=True
    )
    return [grad if want else None for grad, want in zip(found, wanted, strict=True)]
