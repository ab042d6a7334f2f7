"""The form that every product and all its derivatives come from.

A product is the derivative of one form, linear in each of its four slots,

    S(x1, x2, weight, out) = sum_z sum_paths C[i, j, k] x1[U, i] x2[V, j] weight[...] out[W, k]

with respect to `out`. What a backend computes is a sum of derivatives of S, see
`eqtp.kernels.codegen.multilinear_terms`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from eqtp.graph import Graph
from eqtp.kernels.codegen.multilinear_terms import Term
from eqtp.layout import Layout
from eqtp.problem import TensorProductProblem

__all__ = ["SLOTS", "VALUE", "WEIGHT", "Form", "is_weighted"]

SLOTS: tuple[str, ...] = ("x1", "x2", "weight", "out")
WEIGHT = 2
"""Number of the weights, among the slots and among the operands."""


@dataclass(frozen=True)
class Form:
    """The form S of one call.

    Attributes:
        problem: The paths.
        graph: Edges, or None for rows.
        layout: Layout of x1, x2 and out.
        num_rows: Rows (edges) z.
        shared: Whether one set of weights serves all rows.
    """

    problem: TensorProductProblem
    graph: Graph | None
    layout: Layout
    num_rows: int
    shared: bool

    @cached_property
    def dims(self) -> tuple[int, int, int, int]:
        """Columns of each slot."""
        return self.problem.dims

    def shape(self, slot: int) -> tuple[int, ...]:
        """Shape of an operand of a slot, and of derivatives in it."""
        dim = self.dims[slot]
        if slot == WEIGHT and self.shared:
            return (dim,)
        if self.graph is not None and SLOTS[slot] in ("x1", "out"):
            return (self.graph.num_src if SLOTS[slot] == "x1" else self.graph.num_dst, dim)
        return (self.num_rows, dim)

    def part_of(self, term: Term) -> Form:
        """The paths that count in a term."""
        paths = tuple(path for path in self.problem.paths if path.has_weight)
        if not is_weighted(term) or len(paths) == len(self.problem.paths):
            return self
        return replace(self, problem=replace(self.problem, paths=paths))


VALUE = Term((0, 1, WEIGHT, None), (None, None, None, 0))
"""The product of the operands x1, x2, weight."""


def is_weighted(term: Term) -> bool:
    """Whether only the paths with weights count: a direction stands in the weights' place."""
    return term.operands[WEIGHT] != WEIGHT
