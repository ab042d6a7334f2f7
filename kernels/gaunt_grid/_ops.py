"""The product and all its derivatives as one `torch.library` op: a sum of terms.

The product is the derivative in `out` of one form that is linear in six slots,

    T(x1, a, x2, b, out, c) = sum_z sum_c sum_p weight_p  F(a x1)(p) G(b x2)(p) H(c out)(p),

and so are its gradients and theirs: see `eqtp.kernels.codegen.multilinear_terms`. The value takes
two transforms forward and one back, all gradients together three and three; `_schedule` finds what
can be shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import cast

import torch
from torch import Tensor

from eqtp.kernels.codegen.multilinear_ops import Operands, register_product
from eqtp.kernels.codegen.multilinear_terms import Term, slots_of_results, terms_of, text_of
from eqtp.kernels.gaunt_grid._schedule import schedule
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["product"]

_OUT = 4
_VALUE = text_of((Term((0, 1, 2, 3, None, 4), (None, None, None, None, 0, None)),))
_WEIGHTS = (1, 3, 4)
"""Numbers of a, b and c among the operands; None stands for 1."""


def product(
    x1: Tensor,
    x2: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    c: Tensor | None,
    problem: str,
    backend: str,
) -> Tensor:
    """The product [rows, dim3, channels], differentiable to any order."""
    channels = [x1.shape[2], x2.shape[2], max(x1.shape[2], x2.shape[2])]
    op = torch.ops.eqtp.sphere_product.default
    (out,) = op([x1, a, x2, b, c], problem, backend, channels, _VALUE)
    return cast("Tensor", out)


def _compute(
    operands: Operands, problem: str, backend: str, channels: Sequence[int], text: str
) -> list[Tensor]:
    kernel = import_module(f"eqtp.kernels.gaunt_grid._{backend}")
    description = SphereProductProblem.of_text(problem)
    given = {n: x.contiguous() for n, x in enumerate(operands) if x is not None}
    ones = frozenset(number for number in _WEIGHTS if number not in given)
    plan = schedule(description.odd, terms_of(text), frozenset(given), ones)
    slots = slots_of_results(text)
    shapes = _shapes(operands, description, channels, text)
    rows = given[0].shape[0]
    results = kernel.evaluate(
        description,
        plan,
        given,
        {n: (rows, *shape[1:]) for n, shape in shapes.items()},
        tuple(channels),
    )
    return [
        results[number].sum(0, keepdim=True)
        if shapes[number][0] == 1 and slots[number] % 2 == 1
        else results[number]
        for number in slots
    ]


def _shapes(
    operands: Operands, problem: SphereProductProblem, channels: Sequence[int], text: str
) -> dict[int, Sequence[int]]:
    """Shape of every result."""
    rows = cast("Tensor", operands[0]).shape[0]
    return {
        number: (rows, problem.dims[2], channels[2])
        if slot == _OUT
        else cast("Tensor", operands[number]).shape
        for number, slot in slots_of_results(text).items()
    }


def _fake(
    operands: Operands, problem: str, backend: str, channels: Sequence[int], text: str
) -> list[Tensor]:
    like = cast("Tensor", operands[0])
    shapes = _shapes(operands, SphereProductProblem.of_text(problem), channels, text)
    return [like.new_empty(shape) for shape in shapes.values()]


register_product("sphere_product", "str problem, str backend, SymInt[] channels", _compute, _fake)
