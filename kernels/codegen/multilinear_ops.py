"""Products and all their derivatives as one `torch.library` op each: sums of terms.

An op takes the operands of a product, then any directions, and the text of the terms that it
computes, see `multilinear_terms`; the derivative of a call is another call of the same op with more
operands and other terms, so it is differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.kernels.codegen.multilinear_terms import (
    differentiate,
    slots_of_results,
    terms_of,
    text_of,
)
from eqtp.operators import below_autograd, register

__all__ = ["Operands", "register_product"]

Operands = Sequence[Tensor | None]


def register_product(
    name: str,
    where: str,
    compute: Callable[..., list[Tensor]],
    fake: Callable[..., list[Tensor]],
) -> None:
    """Registers `eqtp::name`(operands, *where, terms), its results in the order of their numbers.

    Args:
        name: Name of the op.
        where: Schema of what else the op takes, "str problem, str backend".
        compute: Kernel for tensors of numbers.
        fake: The same for tensors without numbers.
    """

    def record(apply: Callable[..., Any], operands: Operands, *rest: Any) -> list[Tensor]:
        return list(apply(_Derivatives, op, rest[:-1], rest[-1], *operands))

    schema = f"(Tensor?[] operands, {where}, str terms) -> Tensor[]"
    register(name, schema, compute, fake, record)
    op = getattr(torch.ops.eqtp, name).default


class _Derivatives(torch.autograd.Function):
    """op(operands, *where, terms)."""

    @staticmethod
    def forward(
        ctx: Any, op: Any, where: tuple[Any, ...], text: str, *operands: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.op, ctx.where, ctx.text = op, where, text
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
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
            results = ctx.op([*operands, *more], *ctx.where, text)
            for number, result in zip(slots_of_results(text), results, strict=True):
                grads[number] = result
        return (None, None, None, *grads)
