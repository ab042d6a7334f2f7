"""Polynomials of node features as `torch.library` ops, up to the second gradient.

A kernel module has one function, `run`, of the operands x, weight, grad and h; it computes those of
the results out, grad_x and grad_weight that are given,

    out = P(x, weight),   grad_x, grad_weight = gradients of <grad, P> in x and the weights,

and with h the derivatives of these three at x + t h. Three ops call it:

    eqtp::polynomials                  out
    eqtp::polynomials_backward         grad_x, grad_weight
    eqtp::polynomials_double_backward  the gradients of <(h, v), (grad_x, grad_weight)> in x, the
                                       weights and grad

What is differentiated further than twice goes through plain torch, and so do second gradients of
grad_weight unless P is linear in the weights: training on forces does not ask for them.

A problem goes through its `text`, the kernels through their module's name in `eqtp.kernels`, e.g.
"polynomials._cpu", which has a function `polynomials` from texts to `Polynomials`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.kernels.codegen.polynomial_operands import PolynomialProblem, check_elements
from eqtp.layout import Layout, to_layout
from eqtp.operators import below_autograd, is_direct, register

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


def _polynomials(kernel: str, text: str) -> Polynomials:
    """What a kernel module makes of a problem's text; it is imported when first needed."""
    found: Polynomials = import_module(f"eqtp.kernels.{kernel}").polynomials(text)
    return found


def contract(
    x: Tensor,
    weight: Tensor,
    element: Tensor,
    problem: PolynomialProblem,
    layout: Layout,
    text: str,
    kernel: str,
) -> Tensor:
    """The op by the kernels of one module; `text` is the problem's."""
    args = to_layout(x, problem.irreps_in, layout, "ir_mul"), weight, element, text, kernel
    op: Any = _Value.apply if is_direct(*args[:3]) else torch.ops.eqtp.polynomials.default
    out: Tensor = op(*args)
    return to_layout(out, problem.irreps_out, "ir_mul", layout)


class _Value(torch.autograd.Function):
    """eqtp::polynomials(x, weight, element, problem, kernel)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.save_for_backward(*args[:3])
        ctx.where = args[3:]
        ctx.set_materialize_grads(False)
        if is_direct(*args[:3]):
            return _compute(*args)
        out: Tensor = below_autograd(torch.ops.eqtp.polynomials.default, *args)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, element = ctx.saved_tensors
        wanted = wanted_gradients(ctx, (x, weight))
        if grad is None or not any(wanted):
            return (None,) * 5
        args = x, weight, grad, element, *ctx.where, wanted
        if is_direct(*args[:4]):
            grads = _Gradient.apply(*args)  # type: ignore[no-untyped-call]
        else:
            grads = torch.ops.eqtp.polynomials_backward.default(*args)
        return (*_spread(grads, wanted), None, None, None)


class _Gradient(torch.autograd.Function):
    """eqtp::polynomials_backward(x, weight, grad, element, problem, kernel, wanted)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*args[:4])
        *ctx.where, ctx.wanted = args[4:]
        ctx.set_materialize_grads(False)
        if is_direct(*args[:4]):
            return tuple(_compute_backward(*args))
        op = torch.ops.eqtp.polynomials_backward.default
        return tuple(below_autograd(op, *args))

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        h, v = _spread(directions, ctx.wanted)
        x, weight, grad, element = ctx.saved_tensors
        wanted = wanted_gradients(ctx, (x, weight, grad))
        if (h is None and v is None) or not any(wanted):
            return (None,) * 7
        text, kernel = ctx.where
        polynomials = _polynomials(kernel, text)
        if torch.is_grad_enabled() or (v is not None and not polynomials.linear):
            operands = x, weight, grad, (h, v), wanted, element, polynomials
            found = _composed_second_gradient(*operands)
        else:
            args = h, v, x, weight, grad, element, *ctx.where, wanted
            op = torch.ops.eqtp.polynomials_double_backward.default
            compute: Any = _compute_double_backward if is_direct(*args[:6]) else op
            found = _spread(compute(*args), wanted)
        return (*found, None, None, None, None)


def _spread(values: Sequence[Tensor | None], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """One entry per operand, None where none was wanted."""
    remaining = iter(values)
    return tuple(next(remaining) if want else None for want in wanted)


def _composed_second_gradient(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    directions: tuple[Tensor | None, Tensor | None],
    need: Sequence[bool],
    element: Tensor,
    polynomials: Polynomials,
) -> Sequence[Tensor | None]:
    """The second gradient, differentiable again, through the plain-torch kernels."""
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
    return _spread(found, need)


def _compute(x: Tensor, weight: Tensor, element: Tensor, text: str, kernel: str) -> Tensor:
    check_elements(element, weight.shape[0])
    polynomials = _polynomials(kernel, text)
    out = x.new_empty(x.shape[0], polynomials.problem.irreps_out.dim)
    x, weight = x.contiguous(), weight.contiguous()
    polynomials.run(polynomials.problem, element.contiguous(), x=x, weight=weight, out=out)
    return out


def _compute_backward(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    element: Tensor,
    text: str,
    kernel: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    polynomials = _polynomials(kernel, text)
    operands = {"x": x.contiguous(), "weight": weight.contiguous(), "grad": grad.contiguous()}
    results = _empty({"grad_x": x, "grad_weight": weight}, wanted)
    polynomials.run(polynomials.problem, element.contiguous(), **operands, **results)
    return [result for result in results.values() if result is not None]


def _compute_double_backward(
    h: Tensor | None,
    v: Tensor | None,
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    element: Tensor,
    text: str,
    kernel: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    polynomials = _polynomials(kernel, text)
    problem, run = polynomials.problem, polynomials.run
    operands = {"x": x.contiguous(), "weight": weight.contiguous(), "grad": grad.contiguous()}
    like, element = {"grad_x": x, "grad_weight": weight, "out": grad}, element.contiguous()
    total: dict[str, Tensor | None] = dict.fromkeys(like)
    if h is not None:
        total = _empty(like, wanted)
        run(problem, element, **operands, h=h.contiguous(), **total)
    if v is not None:  # linear in the direction of the weights
        need_x, need_weight, need_grad = wanted
        part = _empty(like, (need_x, False, need_grad))
        run(problem, element, **operands | {"weight": v.contiguous()}, **part)
        total = {name: _sum(total[name], part[name]) for name in like}
        if need_weight and total["grad_weight"] is None:
            total["grad_weight"] = torch.zeros_like(weight)
    return [result for result in total.values() if result is not None]


def _empty(like: dict[str, Tensor], wanted: Sequence[bool]) -> dict[str, Tensor | None]:
    pairs = zip(like.items(), wanted, strict=True)
    return {name: t.new_empty(*t.shape) if want else None for (name, t), want in pairs}


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b


def _fake(x: Tensor, weight: Tensor, element: Tensor, text: str, kernel: str) -> Tensor:
    return x.new_empty(x.shape[0], _polynomials(kernel, text).problem.irreps_out.dim)


def _fake_gradients(first: int, count: int) -> Callable[..., list[Tensor]]:
    """One gradient like every wanted operand of `count` from `first` on."""

    def fake(*args: Any) -> list[Tensor]:
        pairs = zip(args[first : first + count], args[-1], strict=True)
        return [t.new_empty(t.shape) for t, want in pairs if want]

    return fake


def _record(apply: Callable[..., Any], *args: Any) -> Any:
    return apply(_Value, *args)


def _record_gradient(apply: Callable[..., Any], *args: Any) -> Any:
    return list(apply(_Gradient, *args))


_WHERE = "Tensor element, str problem, str kernel"

register(
    "polynomials",
    f"(Tensor x, Tensor weight, {_WHERE}) -> Tensor",
    _compute,
    _fake,
    _record,
)
register(
    "polynomials_backward",
    f"(Tensor x, Tensor weight, Tensor grad, {_WHERE}, bool[] wanted) -> Tensor[]",
    _compute_backward,
    _fake_gradients(0, 2),
    _record_gradient,
)
register(
    "polynomials_double_backward",
    "(Tensor? h, Tensor? v, Tensor x, Tensor weight, Tensor grad, "
    f"{_WHERE}, bool[] wanted) -> Tensor[]",
    _compute_double_backward,
    _fake_gradients(2, 3),
)
