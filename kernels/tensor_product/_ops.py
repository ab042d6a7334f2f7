"""The product and all its derivatives as one `torch.library` op: a sum of terms, see `_form`.

`eqtp::tensor_product` takes x1, x2 and the weights, then any directions.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from eqtp.kernels.codegen.edges import graph_of
from eqtp.kernels.codegen.multilinear_ops import Operands, register_product
from eqtp.kernels.codegen.multilinear_terms import slots_of_results, terms_of, text_of
from eqtp.kernels.tensor_product import _cpu, _torch, _triton
from eqtp.kernels.tensor_product._form import SLOTS, VALUE, Form
from eqtp.layout import Layout
from eqtp.problem import TensorProductProblem

__all__ = ["product"]

_KERNELS = {"cpu": _cpu, "torch": _torch, "triton": _triton}
_OUT = SLOTS.index("out")
_VALUE = text_of((VALUE,))

Where = tuple[list[Tensor], int, str, str, Layout]
"""Edges as tensors, rows of `out`, the problem's text, backend, layout."""


def product(x1: Tensor, x2: Tensor, weight: Tensor | None, where: Where) -> Tensor:
    """The product, differentiable to any order."""
    (out,) = torch.ops.eqtp.tensor_product.default([x1, x2, weight], *where, _VALUE)
    return cast("Tensor", out)


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


register_product(
    "tensor_product",
    "Tensor[] edges, SymInt num_dst, str problem, str backend, str layout",
    _compute,
    _fake,
)
