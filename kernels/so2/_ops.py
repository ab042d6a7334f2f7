"""The rotations as `torch.library` ops, closed under differentiation.

Everything is a piece of one form per edge, linear in features x, frame numbers y and turn v,

    T(x, y, v; r) = <y, D(r) G(v) x>,    G(v) = sum_k v_k G_k,    without v: <y, D(r) x>.

    eqtp::so2_rotate       D G(v) x, the gradient of T in y
    eqtp::so2_rotate_back  its transpose summed at the nodes, the gradient of T in x
    eqtp::so2_torque       t_k = <D^T y, G_k G(v) x>; without v the gradient of T(., ., v) in v

The gradient in the edge vector needs no derivative of a rotation. Moving r by dr turns the frame by
w = -(r x dr) / |r|^2, up to a roll about the edge that cancels in whatever commutes with rolls, and
dT = <D^T y, G(w) G(v) x>, so

    dT/dr = (r x t) / |r|^2.

Each op's derivatives are these ops again, so they are differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.kernels.so2._torch import turned
from eqtp.kernels.so2.edges import side_of
from eqtp.kernels.so2.frames import FrameLayout
from eqtp.operators import below_autograd, register
from eqtp.rows import gather_rows, sum_rows

__all__ = ["rotate", "rotate_back", "torque", "vector_gradient"]


@cache
def _kernel(backend: str) -> ModuleType:
    """The module of a backend, imported when first needed."""
    return import_module(f"eqtp.kernels.so2._{backend}")


Where = tuple[list[Tensor], bool, str, str]
"""Edges, whether x stands at their receivers, the frame as a text, the backend."""


def rotate(x: Tensor, r: Tensor, v: Tensor | None, where: Where) -> Tensor:
    """D x, or D G(v) x, for the node of every edge: [E, frame.dim]."""
    out: Tensor = torch.ops.eqtp.so2_rotate.default(x, r, v, *where)
    return out


def rotate_back(y: Tensor, r: Tensor, v: Tensor | None, where: Where, num_nodes: int) -> Tensor:
    """The transpose of `rotate`: [num_nodes, dim]."""
    out: Tensor = torch.ops.eqtp.so2_rotate_back.default(y, r, v, *where, num_nodes)
    return out


def torque(x: Tensor, y: Tensor, r: Tensor, v: Tensor | None, where: Where) -> Tensor:
    """t_k = <D^T y, G_k x>, or <D^T y, G_k G(v) x>: [E, 3]."""
    out: Tensor = torch.ops.eqtp.so2_torque.default(x, y, r, v, *where)
    return out


def vector_gradient(r: Tensor, t: Tensor) -> Tensor:
    """(r x t) / |r|^2, scaled so that no square under- or overflows; zero where r is zero."""
    size = r.detach().abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1)
    unit = r / size
    square = (unit * unit).sum(-1, keepdim=True)
    cross = torch.linalg.cross(unit, t)
    gradient: Tensor = cross / torch.where(square > 0, square, 1) / size
    return gradient


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, v: Tensor | None, *where: Any) -> Tensor:
        ctx.save_for_backward(x, r, v)
        ctx.where = where
        out: Tensor = below_autograd(torch.ops.eqtp.so2_rotate.default, x, r, v, *where)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r, v = operands = ctx.saved_tensors
        want_x, want_r, want_v = wanted_gradients(ctx, operands)
        return (
            rotate_back(g, r, v, ctx.where, x.shape[0]) if want_x else None,
            vector_gradient(r, torque(x, g, r, v, ctx.where)) if want_r else None,
            torque(x, g, r, None, ctx.where) if want_v else None,
            *[None] * 4,
        )


class _RotateBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, r: Tensor, v: Tensor | None, *where: Any) -> Tensor:
        ctx.save_for_backward(y, r, v)
        ctx.where = where[:-1]
        out: Tensor = below_autograd(torch.ops.eqtp.so2_rotate_back.default, y, r, v, *where)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, r, v = operands = ctx.saved_tensors
        want_y, want_r, want_v = wanted_gradients(ctx, operands)
        return (
            rotate(g, r, v, ctx.where) if want_y else None,
            vector_gradient(r, torque(g, y, r, v, ctx.where)) if want_r else None,
            torque(g, y, r, None, ctx.where) if want_v else None,
            *[None] * 5,
        )


class _Torque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, r: Tensor, v: Tensor | None, *where: Any) -> Tensor:
        ctx.save_for_backward(x, y, r, v)
        ctx.where = where
        out: Tensor = below_autograd(torch.ops.eqtp.so2_torque.default, x, y, r, v, *where)
        return out

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        x, y, r, v = operands = ctx.saved_tensors
        want_x, want_y, want_r, want_v = wanted_gradients(ctx, operands)
        where: Where = ctx.where
        if v is None:  # the value contracted with u is T(x, y, u)
            return (
                rotate_back(y, r, u, where, x.shape[0]) if want_x else None,
                rotate(x, r, u, where) if want_y else None,
                vector_gradient(r, torque(x, y, r, u, where)) if want_r else None,
                *[None] * 5,
            )
        frame = FrameLayout.of_text(where[2])  # T(G(v) x, y, u), row by row
        side = side_of(where[0], where[1])
        nodes = x if side is None else gather_rows(x, side.node)
        rows: Where = ([], *where[1:])
        x_turned = turned(nodes, v, frame)
        g = rotate_back(y, r, u, rows, y.shape[0]) if want_x or want_v else None
        return (
            _summed(-turned(g, v, frame), side, x.shape[0]) if g is not None and want_x else None,
            rotate(x_turned, r, u, rows) if want_y else None,
            vector_gradient(r, torque(x_turned, y, r, u, rows)) if want_r else None,
            _pairings(nodes, g, frame) if g is not None and want_v else None,
            *[None] * 4,
        )


def _summed(rows: Tensor, side: Any, num_nodes: int) -> Tensor:
    """Rows of edges summed at their nodes."""
    return rows if side is None else sum_rows(rows, side.node, num_nodes)


def _pairings(x: Tensor, g: Tensor, frame: FrameLayout) -> Tensor:
    """<g, G_k x> for every row and k, [E, 3]."""
    axes = torch.eye(3, dtype=x.dtype, device=x.device)
    return torch.stack([(g * turned(x, axis.expand(len(x), 3), frame)).sum(1) for axis in axes], 1)


def _compute(
    x: Tensor,
    r: Tensor,
    v: Tensor | None,
    edges: Sequence[Tensor],
    at_receivers: bool,
    frame: str,
    backend: str,
) -> Tensor:
    side = side_of(edges, at_receivers)
    operands = _contiguous(x, r, v)
    out: Tensor = _kernel(backend).rotate(*operands, side, FrameLayout.of_text(frame))
    return out


def _compute_back(
    y: Tensor,
    r: Tensor,
    v: Tensor | None,
    edges: Sequence[Tensor],
    at_receivers: bool,
    frame: str,
    backend: str,
    num_nodes: int,
) -> Tensor:
    side = side_of(edges, at_receivers)
    operands = _contiguous(y, r, v)
    kernel = _kernel(backend)
    out: Tensor = kernel.rotate_back(*operands, side, num_nodes, FrameLayout.of_text(frame))
    return out


def _compute_torque(
    x: Tensor,
    y: Tensor,
    r: Tensor,
    v: Tensor | None,
    edges: Sequence[Tensor],
    at_receivers: bool,
    frame: str,
    backend: str,
) -> Tensor:
    side = side_of(edges, at_receivers)
    operands = _contiguous(x, y, r, v)
    out: Tensor = _kernel(backend).torque(*operands, side, FrameLayout.of_text(frame))
    return out


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _fake(x: Tensor, r: Tensor, *where: Any) -> Tensor:
    return x.new_empty(r.shape[0], FrameLayout.of_text(where[-2]).dim)


def _fake_back(y: Tensor, r: Tensor, *where: Any) -> Tensor:
    return y.new_empty(where[-1], FrameLayout.of_text(where[-3]).irreps.dim)


def _fake_torque(x: Tensor, y: Tensor, r: Tensor, *where: Any) -> Tensor:
    return y.new_empty(r.shape[0], 3)


_WHERE = "Tensor[] edges, bool at_receivers, str frame, str backend"

register(
    "so2_rotate",
    f"(Tensor x, Tensor r, Tensor? v, {_WHERE}) -> Tensor",
    _compute,
    _fake,
    lambda apply, *args: apply(_Rotate, *args),
)
register(
    "so2_rotate_back",
    f"(Tensor y, Tensor r, Tensor? v, {_WHERE}, SymInt num_nodes) -> Tensor",
    _compute_back,
    _fake_back,
    lambda apply, *args: apply(_RotateBack, *args),
)
register(
    "so2_torque",
    f"(Tensor x, Tensor y, Tensor r, Tensor? v, {_WHERE}) -> Tensor",
    _compute_torque,
    _fake_torque,
    lambda apply, *args: apply(_Torque, *args),
)
