"""The general product in plain PyTorch, any device.

Rows (edges) are taken in chunks that fit the cache, in the order given; graph edges in
receiver-sorted order read and write memory best, but any order is right. Everything here is in
"ir_mul" layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.kernels.codegen.multilinear_terms import Term
from eqtp.kernels.tensor_product._form import SLOTS, Form
from eqtp.kernels.tensor_product._groups import Group, make_groups
from eqtp.kernels.tensor_product.config import chunk_rows
from eqtp.problem import TensorProductProblem
from eqtp.rows import add_rows

__all__ = ["evaluate"]


def evaluate(
    form: Form, terms: Sequence[Term], operands: Sequence[Tensor | None], num_results: int
) -> tuple[Tensor | None, ...]:
    """The sums of derivatives that the terms describe; None where no term adds anything."""
    results: list[Tensor | None] = [None] * num_results
    for term in terms:
        filled = zip(SLOTS, term.operands, strict=True)
        given = {slot: operands[number] for slot, number in filled if number is not None}
        wanted = {s: r for s, r in zip(SLOTS, term.results, strict=True) if r is not None}
        derivatives = _derivatives(form.part_of(term), tuple(wanted), given)
        for number, derivative in zip(wanted.values(), derivatives, strict=True):
            old = results[number]
            results[number] = derivative if old is None else old + derivative
    return tuple(results)


@dataclass(frozen=True)
class _Plan:
    """What the kernels need to know of a problem, constants on the device."""

    groups: tuple[Group, ...]
    numel_per_row: int  # size of operands (without weights) and intermediates of one row


@lru_cache(maxsize=256)
def _make_plan(problem: TensorProductProblem, dtype: torch.dtype, device: torch.device) -> _Plan:
    groups = make_groups(problem, dtype, device)
    columns = problem.irreps_in1.dim + problem.irreps_in2.dim + problem.irreps_out.dim
    largest = max((group.numel_per_row for group in groups), default=0)
    return _Plan(groups, columns + largest)


def _derivatives(
    form: Form, wanted: tuple[str, ...], given: Mapping[str, Tensor | None]
) -> tuple[Tensor, ...]:
    """Derivatives of S in the slots `wanted`; operands that no derivative needs may be None."""
    like = next(x for x in given.values() if x is not None)
    plan = _make_plan(form.problem, like.dtype, like.device)
    results = {slot: _allocate(form, slot, like) for slot in wanted}
    step = chunk_rows(like.element_size() * plan.numel_per_row, like.device.type)
    for start in range(0, form.num_rows, step):
        rows = slice(start, min(start + step, form.num_rows))
        chunk = {slot: _read(form, slot, x, rows) for slot, x in given.items() if x is not None}
        sums = {slot: _open(form, slot, x, rows) for slot, x in results.items()}
        for group in plan.groups:
            group.accumulate(chunk, sums)
        for slot, x in results.items():
            index = _node_index(form, slot, rows)
            if index is not None:
                add_rows(x, index, sums[slot])
    return tuple(results.values())


def _allocate(form: Form, slot: str, like: Tensor) -> Tensor:
    """Zeros where chunks add to one another, otherwise memory that `_open` clears."""
    shape = form.shape(SLOTS.index(slot))
    sums = form.shared if slot == "weight" else form.graph is not None and slot in ("x1", "out")
    return like.new_zeros(shape) if sums else like.new_empty(shape)


def _read(form: Form, slot: str, x: Tensor, rows: slice) -> Tensor:
    index = _node_index(form, slot, rows)
    if index is not None:
        return x.index_select(0, index)
    return x if x.ndim == 1 else x[rows]


def _open(form: Form, slot: str, x: Tensor, rows: slice) -> Tensor:
    """Where a chunk adds its part: zeros, or the running sum for shared weights.

    Weights per row are written, each column by its one path, and need no zeros.
    """
    if _node_index(form, slot, rows) is not None:
        return x.new_zeros(rows.stop - rows.start, x.shape[1])
    if slot == "weight":
        return x if form.shared else x[rows]
    return x[rows].zero_()


def _node_index(form: Form, slot: str, rows: slice) -> Tensor | None:
    if form.graph is None or slot in ("x2", "weight"):
        return None
    return (form.graph.edge_src if slot == "x1" else form.graph.edge_dst)[rows]
