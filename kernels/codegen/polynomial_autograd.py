"""How autograd calls the kernels of polynomials of node features, up to the second gradient.

A kernel module has one function, `run`, of the operands x, weight, grad and h; it computes those of
the results out, grad_x and grad_weight that are given,

    out = P(x, weight),   grad_x, grad_weight = gradients of <grad, P> in x and the weights,

and with h the derivatives of these three at x + t h. What is differentiated further than twice goes
through plain torch, and so do second gradients of grad_weight unless P is linear in the weights:
training on forces does not ask for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.kernels.codegen.polynomial_operands import PolynomialProblem
from eqtp.layout import Layout, to_layout

__all__ = ["Polynomials", "Run", "contract"]


class Run(Protocol):
    """The function of a kernel module."""

    def __call__(self, problem: Any, element: Tensor, **tensors: Tensor | None) -> None:
        """Computes the results out, grad_x, grad_weight from x, weight, grad, h: those given."""


@dataclass(frozen=True)
class Polynomials:
    """An op and its kernels.

    Attributes:
        problem: Which polynomials.
        run: The kernels.
        definition: The op in plain torch, (x, weight, element, problem, layout=...) -> out.
        linear: Whether the polynomials are linear in the weights.
    """

    problem: PolynomialProblem
    run: Run
    definition: Callable[..., Tensor]
    linear: bool


def contract(
    x: Tensor,
    weight: Tensor,
    element: Tensor,
    polynomials: Polynomials,
    layout: Layout,
) -> Tensor:
    """The op by the kernels of one module."""
    problem = polynomials.problem
    rows = to_layout(x, problem.irreps_in, layout, "ir_mul")
    out: Tensor = _Value.apply(  # type: ignore[no-untyped-call]
        rows.contiguous(), weight.contiguous(), element.contiguous(), polynomials
    )
    return to_layout(out, problem.irreps_out, "ir_mul", layout)


class _Value(torch.autograd.Function):
    """out = P(x, weight)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        element: Tensor,
        polynomials: Polynomials,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, element)
        ctx.polynomials = polynomials
        ctx.set_materialize_grads(False)
        out = x.new_empty(x.shape[0], polynomials.problem.irreps_out.dim)
        polynomials.run(polynomials.problem, element, x=x, weight=weight, out=out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 4
        x, weight, element = ctx.saved_tensors
        need = wanted_gradients(ctx, (x, weight))
        grads = _Gradient.apply(  # type: ignore[no-untyped-call]
            x, weight, grad.contiguous(), element, ctx.polynomials, need
        )
        return (*grads, None, None)


class _Gradient(torch.autograd.Function):
    """Gradients of <grad, P> in x and in the weights, as a differentiable function itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        grad: Tensor,
        element: Tensor,
        polynomials: Polynomials,
        need: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(x, weight, grad, element)
        ctx.polynomials = polynomials
        ctx.set_materialize_grads(False)
        grad_x, grad_weight = (
            torch.empty_like(t) if needed else None
            for t, needed in zip((x, weight), need, strict=True)
        )
        operands = {"x": x, "weight": weight, "grad": grad}
        results = {"grad_x": grad_x, "grad_weight": grad_weight}
        polynomials.run(polynomials.problem, element, **operands, **results)
        return grad_x, grad_weight

    @staticmethod
    def backward(ctx: Any, h: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, ...]:
        if h is None and v is None:
            return (None,) * 6
        x, weight, grad, element = ctx.saved_tensors
        need = wanted_gradients(ctx, (x, weight, grad))
        operands = x, weight, grad, (h, v), need, element, ctx.polynomials
        if torch.is_grad_enabled() or (v is not None and not ctx.polynomials.linear):
            found = _composed_second_gradient(*operands)
        else:
            found = _second_gradient(*operands)
        return (*found, None, None, None)


def _second_gradient(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    directions: tuple[Tensor | None, Tensor | None],
    need: Sequence[bool],
    element: Tensor,
    polynomials: Polynomials,
) -> Sequence[Tensor | None]:
    """Gradients of <directions, gradients of <grad, P>> in x, the weights and grad."""
    h, v = directions
    total: list[Tensor | None] = [None, None, None]
    if h is not None:
        total = [
            torch.empty_like(t) if needed else None
            for t, needed in zip((x, weight, grad), need, strict=True)
        ]
        operands = {"x": x, "weight": weight, "grad": grad, "h": h.contiguous()}
        results = zip(("grad_x", "grad_weight", "out"), total, strict=True)
        polynomials.run(polynomials.problem, element, **operands, **dict(results))
    if v is not None:
        grad_x, out = (
            torch.empty_like(t) if needed else None for t, needed in ((x, need[0]), (grad, need[2]))
        )
        operands = {"x": x, "weight": v.contiguous(), "grad": grad}
        polynomials.run(polynomials.problem, element, **operands, grad_x=grad_x, out=out)
        total[0], total[2] = _sum(total[0], grad_x), _sum(total[2], out)
    return total


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b


def _composed_second_gradient(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    directions: tuple[Tensor | None, Tensor | None],
    need: Sequence[bool],
    element: Tensor,
    polynomials: Polynomials,
) -> Sequence[Tensor | None]:
    """The same, differentiable again, through the plain-torch kernels."""
    with torch.enable_grad():
        # Views, because grad may itself be a function of x and the partial derivative is wanted.
        x, weight, grad = x.view_as(x), weight.view_as(weight), grad.view_as(grad)
        out = polynomials.definition(x, weight, element, polynomials.problem, layout="ir_mul")
        given = [(t, d) for t, d in zip((x, weight), directions, strict=True) if d is not None]
        gradients = torch.autograd.grad(out, [t for t, _ in given], grad, create_graph=True)
        found = torch.autograd.grad(
            gradients,
            [t for t, needed in zip((x, weight, grad), need, strict=True) if needed],
            [direction for _, direction in given],
            create_graph=True,
            allow_unused=True,
        )
    remaining = iter(found)
    return [next(remaining) if needed else None for needed in need]
