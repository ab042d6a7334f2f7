"""The linear maps of all orders, closed under differentiation; backends compute the pieces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.kernels.so2.frames import FrameLayout

__all__ = ["Where", "linear"]


class Where(NamedTuple):
    """What the maps are.

    Attributes:
        frame_in: Frame of y.
        frame_out: Frame of the result.
        parts: For every order the number of matrices, A or A and B.
        backend: Whose kernels compute them: "cpu" or "triton".
    """

    frame_in: FrameLayout
    frame_out: FrameLayout
    parts: tuple[int, ...]
    backend: str


def linear(y: Tensor, weights: Sequence[Tensor], where: Where) -> Tensor:
    """`so2_linear` with shared weights, differentiable to any order."""
    out: Tensor = _form(where, y, None, weights)
    return out


@cache
def _kernel(backend: str) -> ModuleType:
    """The module of a backend, imported when first needed."""
    return import_module(f"eqtp.kernels.so2._{backend}_linear")


def _form(
    where: Where, y: Tensor | None, g: Tensor | None, weights: Sequence[Tensor | None]
) -> Any:
    operands = [t if t is None else t.contiguous() for t in (y, g, *weights)]
    return _Form.apply(where, *operands)  # type: ignore[no-untyped-call]


class _Form(torch.autograd.Function):
    """The form <g, map(y, weights)>, contracted with all but one of y, g and the weights.

    None stands in the place that is left open, and the result belongs there. The gradients are the
    same form left open elsewhere, so it is differentiable to any order.
    """

    @staticmethod
    def forward(
        ctx: Any, where: Where, y: Tensor | None, g: Tensor | None, *weights: Tensor | None
    ) -> Any:
        ctx.where = where
        ctx.save_for_backward(y, g, *weights)
        ctx.set_materialize_grads(False)
        kernel = _kernel(where.backend)
        if y is not None and g is not None:
            return tuple(kernel.weight_gradients(y, g, where))
        if y is not None:
            return kernel.map_frames(y, weights, where)
        return kernel.map_back(g, weights, where)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        y, g, *weights = ctx.saved_tensors
        where: Where = ctx.where
        want_y, want_g, *want_weights = wanted_gradients(ctx, (y, g, *weights))
        nothing: list[Tensor | None] = [None] * len(weights)
        if all(grad is None for grad in grads):
            return None, None, None, *nothing
        if y is None:
            y = grads[0]
        elif g is None:
            g = grads[0]
        else:
            weights = [
                y.new_zeros(parts, where.frame_in.width(m), where.frame_out.width(m))
                if grad is None
                else grad
                for m, (parts, grad) in enumerate(zip(where.parts, grads, strict=True))
            ]
        of_weights = _form(where, y, g, nothing) if any(want_weights) else nothing
        return (
            None,
            _form(where, None, g, weights) if want_y else None,
            _form(where, y, None, weights) if want_g else None,
            *(grad if want else None for grad, want in zip(of_weights, want_weights, strict=True)),
        )
