"""Derivatives of a form that is linear in every slot, as data.

A product is the derivative in `out` of one form S(x1, x2, ..., out) that is linear in each of its
slots, and so are its gradients and theirs. What a backend computes is a sum of derivatives of S:
`Term` says which operands fill the slots and which derivatives are taken. The derivative of such a
sum is another one (`differentiate`), so a backend that evaluates sums of terms is closed under
differentiation. The value takes one term, all gradients together one, the gradients of those
gradients one per operand.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Numbers", "Term", "differentiate", "slots_of_results", "terms_of", "text_of"]

Numbers = tuple[int | None, ...]
"""A number for each slot."""


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
