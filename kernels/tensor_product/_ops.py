"""The product and all its derivatives as one `torch.library` op: a sum of terms, see `_form`.

`eqtp::tensor_product` takes x1, x2 and the weights, then any directions; the derivative of a call
is another call with more operands and other terms, so it is differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.kernels.codegen.edges import graph_of
from eqtp.kernels.tensor_product import _cpu, _torch
from eqtp.kernels.tensor_product._form import (
    SLOTS,
    VALUE,
    Form,
    differentiate,
    slots_of_results,
    terms_of,
    text_of,
)
from eqtp.layout import Layout
from eqtp.operators import below_autograd, register
from eqtp.problem import TensorProductProblem

__all__ = ["product"]

_KERNELS = {"cpu": _cpu, "torch": _torch}
_OUT = SLOTS.index("out")

Operands = Sequence[Tensor | None]
Where = tuple[list[Tensor], int, str, str, Layout]
"""Edges as tensors, rows of `out`, the problem's text, backend, layout."""


def product(x1: Tensor, x2: Tensor, weight: Tensor | None, where: Where) -> Tensor:
    """The product, differentiable to any order."""
    (out,) = torch.ops.eqtp.tensor_product.default([x1, x2, weight], *where, _VALUE)
    return cast("Tensor", out)


_VALUE = text_of((VALUE,))


class _Derivatives(torch.autograd.Function):
    """eqtp::tensor_product(operands, *where, terms)."""

    @staticmethod
    def forward(ctx: Any, where: Where, text: str, *operands: Tensor | None) -> tuple[Tensor, ...]:
        ctx.where, ctx.text = where, text
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
        op = torch.ops.eqtp.tensor_product.default
        return tuple(below_autograd(op, list(operands), *where, text))

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        needs = wanted_gradients(ctx, operands)
        numbers = list(slots_of_results(ctx.text))
        given = dict(zip(numbers, directions, strict=True))
        terms = differentiate(
            terms_of(ctx.text),
            len(operands),
            [number for number in numbers if given[number] is not None],
            [number for number, need in enumerate(needs) if need],
        )
        grads: list[Tensor | None] = [None] * len(operands)
        if terms:
            more = [given.get(number) for number in range(numbers[-1] + 1)]
            text = text_of(terms)
            op = torch.ops.eqtp.tensor_product.default
            results = op([*operands, *more], *ctx.where, text)
            for number, result in zip(slots_of_results(text), results, strict=True):
                grads[number] = result
        return (None, None, *grads)


def _compute(
    operands: Operands,
    edges: list[Tensor],
    num_dst: int,
    problem: str,
    backend: str,
    layout: Layout,
    text: str,
) -> list[Tensor]:
    x1, x2, weight, *_ = operands
    assert x1 is not None
    assert x2 is not None
    form = Form(
        TensorProductProblem.of_text(problem),
        graph_of(edges, len(x1), num_dst, backend),
        layout,
        len(x2),
        weight is not None and weight.ndim == 1,
    )
    slots = slots_of_results(text)
    results = _KERNELS[backend].evaluate(form, terms_of(text), operands, max(slots) + 1)
    return [results[number] for number in slots]


def _fake(
    operands: Operands,
    edges: list[Tensor],
    num_dst: int,
    problem: str,
    backend: str,
    layout: Layout,
    text: str,
) -> list[Tensor]:
    x2 = cast("Tensor", operands[1])
    dim_out = TensorProductProblem.of_text(problem).irreps_out.dim
    return [
        x2.new_empty((num_dst, dim_out) if slot == _OUT else cast("Tensor", operands[slot]).shape)
        for slot in slots_of_results(text).values()
    ]


def _record(apply: Callable[..., Any], operands: Operands, *where: Any) -> list[Tensor]:
    return list(apply(_Derivatives, where[:-1], where[-1], *operands))


register(
    "tensor_product",
    "(Tensor?[] operands, Tensor[] edges, SymInt num_dst, str problem, str backend, str layout,"
    " str terms) -> Tensor[]",
    _compute,
    _fake,
    _record,
)
