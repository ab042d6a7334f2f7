"""The form that every product and all its derivatives come from, and its bookkeeping.

A product is the derivative of one form, linear in each of its four slots,

    S(x1, x2, weight, out) = sum_z sum_paths C[i, j, k] x1[U, i] x2[V, j] weight[...] out[W, k]

with respect to `out`. What a backend computes is a sum of derivatives of S: `Term` says which
operands fill the slots and which derivatives are taken. The derivative of such a sum is another
one (`differentiate`), so a backend that evaluates sums of terms is closed under differentiation.
The value takes one term, all gradients together one, the gradients of those gradients three.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from eqtp.graph import Graph
from eqtp.layout import Layout
from eqtp.problem import TensorProductProblem

__all__ = [
    "SLOTS",
    "VALUE",
    "WEIGHT",
    "Form",
    "Term",
    "differentiate",
    "slots_of_results",
    "terms_of",
    "text_of",
]

SLOTS: tuple[str, ...] = ("x1", "x2", "weight", "out")
WEIGHT = 2
"""Number of the weights, among the slots and among the operands."""

Numbers = tuple[int | None, ...]
"""A number for each slot."""


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


@dataclass(frozen=True)
class Term:
    """Derivatives of S at one choice of operands.

    Attributes:
        operands: For each slot, number of the operand that fills it; None where the only
            derivative is taken.
        results: For each slot, number of the result that S's derivative in it is added to.
    """

    operands: Numbers
    results: Numbers

    @property
    def weighted(self) -> bool:
        """Whether only the paths with weights count: a direction stands in the weights' place."""
        return self.operands[WEIGHT] != WEIGHT


VALUE = Term((0, 1, WEIGHT, None), (None, None, None, 0))
"""The product of the operands x1, x2, weight."""


def differentiate(
    terms: Sequence[Term], num_operands: int, directions: Collection[int], needed: Sequence[int]
) -> tuple[Term, ...]:
    """Gradients of sum over the results r of <direction r, result r>.

    Args:
        terms: What the results are.
        num_operands: Operands of the terms; direction r becomes operand num_operands + r.
        directions: Results that have a direction.
        needed: Operands whose gradients are needed; they are results of the same numbers.
    """
    merged: dict[Numbers, Numbers] = {}
    for term in terms:
        gradients = tuple(number if number in needed else None for number in term.operands)
        for slot, result in enumerate(term.results):
            if result is None or result not in directions:
                continue
            operands = _exchange(term.operands, slot, num_operands + result)
            new = _exchange(gradients, slot, None)
            old = merged.get(operands, new)
            merged[operands] = tuple(
                a if a is not None else b for a, b in zip(old, new, strict=True)
            )
    return tuple(
        Term(operands, results)
        for operands, results in merged.items()
        if any(result is not None for result in results)
    )


def _exchange(numbers: Numbers, slot: int, number: int | None) -> Numbers:
    return (*numbers[:slot], number, *numbers[slot + 1 :])


@lru_cache(maxsize=1024)
def text_of(terms: tuple[Term, ...]) -> str:
    """The terms as an argument of a `torch.library` op."""
    return json.dumps([[term.operands, term.results] for term in terms])


@lru_cache(maxsize=1024)
def terms_of(text: str) -> tuple[Term, ...]:
    """The inverse of `text_of`."""
    return tuple(Term(tuple(operands), tuple(results)) for operands, results in json.loads(text))


@lru_cache(maxsize=1024)
def slots_of_results(text: str) -> dict[int, int]:
    """Numbers of the results, ascending, and the slots that they are derivatives in."""
    slots = {
        result: slot
        for term in terms_of(text)
        for slot, result in enumerate(term.results)
        if result is not None
    }
    return dict(sorted(slots.items()))
