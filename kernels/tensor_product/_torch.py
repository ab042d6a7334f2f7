"""The general product in plain PyTorch, any device, with its own gradients.

A product is the derivative of one form, linear in each of its four slots,

    S(x1, x2, weight, out) = sum_z sum_paths C[i, j, k] x1[U, i] x2[V, j] weight[...] out[W, k]

with respect to `out` (the slot that otherwise holds the gradient of a result). So are its
gradients with respect to the other slots, and theirs again: `_Derivative` computes the derivatives
of S in any slots, and its own backward is made of `_Derivative`. (Unweighted paths do not depend
on the weight: they drop out where a direction takes the weight's place.)

Rows (edges) are taken in chunks that fit the cache, in the order given; graph edges in
receiver-sorted order read and write memory best, but any order is right. Sums at nodes use
`index_add_`, which on a CPU adds in the order of the edges. Everything here is in "ir_mul" layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.graph import Graph
from eqtp.kernels.tensor_product._groups import Group, make_groups
from eqtp.kernels.tensor_product.config import chunk_rows
from eqtp.problem import TensorProductProblem

__all__ = ["tensor_product"]

SLOTS: tuple[str, ...] = ("x1", "x2", "weight", "out")


def tensor_product(
    x1: Tensor,
    x2: Tensor,
    weight: Tensor | None,
    problem: TensorProductProblem,
    graph: Graph | None,
) -> Tensor:
    """The product of validated operands in "ir_mul" layout; see `op.tensor_product`."""
    form = _Form(
        problem=problem,
        plan=_make_plan(problem, x1.dtype, x1.device),
        graph=graph,
        num_rows=x2.shape[0],
        shared=weight is not None and weight.ndim == 1,
    )
    given = {"x1": x1, "x2": x2, "weight": weight if problem.weight_numel > 0 else None}
    return _derivatives(form, ("out",), given)[0]


@dataclass(frozen=True)
class _Plan:
    """What the kernels need to know of a problem, constants on the device."""

    groups: tuple[Group, ...]
    dims: Mapping[str, int]  # columns of each slot
    numel_per_row: int  # size of operands (without weights) and intermediates of one row
    options: tuple[torch.dtype, torch.device]


@lru_cache(maxsize=256)
def _make_plan(problem: TensorProductProblem, dtype: torch.dtype, device: torch.device) -> _Plan:
    groups = make_groups(problem, dtype, device)
    dims = {
        "x1": problem.irreps_in1.dim,
        "x2": problem.irreps_in2.dim,
        "weight": problem.weight_numel,
        "out": problem.irreps_out.dim,
    }
    largest = max((group.numel_per_row for group in groups), default=0)
    return _Plan(groups, dims, dims["x1"] + dims["x2"] + dims["out"] + largest, (dtype, device))


@dataclass(frozen=True)
class _Form:
    """The form S of one call: the problem, the graph and the kind of weights."""

    problem: TensorProductProblem
    plan: _Plan
    graph: Graph | None
    num_rows: int
    shared: bool

    def weighted(self) -> _Form:
        """The part of S that depends on the weight."""
        paths = tuple(path for path in self.problem.paths if path.has_weight)
        if len(paths) == len(self.problem.paths):
            return self
        problem = replace(self.problem, paths=paths)
        plan = _make_plan(problem, *self.plan.options)
        return replace(self, problem=problem, plan=plan)

    def derivatives(
        self, wanted: tuple[str, ...], given: Mapping[str, Tensor | None]
    ) -> tuple[Tensor, ...]:
        """Derivatives of S in the slots `wanted`; operands that no derivative needs may be None."""
        like = next(x for x in given.values() if x is not None)
        results = {slot: self._allocate(slot, like) for slot in wanted}
        step = chunk_rows(like.element_size() * self.plan.numel_per_row, like.device.type)
        for start in range(0, self.num_rows, step):
            rows = slice(start, min(start + step, self.num_rows))
            chunk = {slot: self._read(slot, x, rows) for slot, x in given.items() if x is not None}
            sums = {slot: self._open(slot, x, rows) for slot, x in results.items()}
            for group in self.plan.groups:
                group.accumulate(chunk, sums)
            for slot, x in results.items():
                index = self._node_index(slot, rows)
                if index is not None:
                    x.index_add_(0, index, sums[slot])
        return tuple(results.values())

    def _allocate(self, slot: str, like: Tensor) -> Tensor:
        """Zeros where chunks add to one another, otherwise memory that `_open` clears."""
        dim = self.plan.dims[slot]
        if slot == "weight" and self.shared:
            return like.new_zeros(dim)
        if self.graph is not None and slot in ("x1", "out"):
            nodes = self.graph.num_src if slot == "x1" else self.graph.num_dst
            return like.new_zeros(nodes, dim)
        return like.new_empty(self.num_rows, dim)

    def _read(self, slot: str, x: Tensor, rows: slice) -> Tensor:
        index = self._node_index(slot, rows)
        if index is not None:
            return x.index_select(0, index)
        return x if x.ndim == 1 else x[rows]

    def _open(self, slot: str, x: Tensor, rows: slice) -> Tensor:
        """Where a chunk adds its part: zeros, or the running sum for shared weights.

        Weights per row are written, each column by its one path, and need no zeros.
        """
        if self._node_index(slot, rows) is not None:
            return x.new_zeros(rows.stop - rows.start, x.shape[1])
        if slot == "weight":
            return x if self.shared else x[rows]
        return x[rows].zero_()

    def _node_index(self, slot: str, rows: slice) -> Tensor | None:
        if self.graph is None or slot in ("x2", "weight"):
            return None
        return (self.graph.edge_src if slot == "x1" else self.graph.edge_dst)[rows]


def _derivatives(
    form: _Form, wanted: tuple[str, ...], given: Mapping[str, Tensor | None]
) -> tuple[Tensor, ...]:
    """`_Form.derivatives` under autograd; a derivative does not use the slot it is taken in."""
    operands = [None if wanted == (slot,) else given.get(slot) for slot in SLOTS]
    return cast("tuple[Tensor, ...]", _Derivative.apply(form, wanted, *operands))  # type: ignore[no-untyped-call]


class _Derivative(torch.autograd.Function):
    """Derivatives of S; backward is the sum of S's derivatives with one slot exchanged."""

    @staticmethod
    def forward(
        form: _Form, wanted: tuple[str, ...], *operands: Tensor | None
    ) -> tuple[Tensor, ...]:
        given = dict(zip(SLOTS, operands, strict=True))
        return form.derivatives(wanted, given)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        form, wanted, *operands = inputs
        ctx.form, ctx.wanted = form, wanted
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        given = dict(zip(SLOTS, operands, strict=True))
        needs = wanted_gradients(ctx, operands)
        needed = [slot for slot, need in zip(SLOTS, needs, strict=True) if need]
        total: dict[str, Tensor] = {}
        for exchanged, grad in zip(ctx.wanted, grads, strict=True):
            wanted = tuple(slot for slot in needed if slot != exchanged)
            if grad is None or not wanted:
                continue
            form = ctx.form.weighted() if exchanged == "weight" else ctx.form
            results = _derivatives(form, wanted, {**given, exchanged: grad})
            for slot, result in zip(wanted, results, strict=True):
                total[slot] = total[slot] + result if slot in total else result
        return (None, None, *(total.get(slot) for slot in SLOTS))
