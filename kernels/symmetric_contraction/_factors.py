"""The polynomials as sums of products of two shared factors, the form that the C++ kernel runs.

For one element and one channel, with its weights contracted into the couplings,

    P_M(A) = sum_{rows (M, left)} F_left sum_{entries of the row} c_entry F_right,

with F the monomials of at most half the degree, rounded up: every monomial of degree m is written
once, as a left factor of degree m // 2 times a right factor of degree m - m // 2. Of the ways to
split a monomial those are taken that need few different right factors. With lmax 3, correlation 3
and a result 0e+1o that makes 410 entries in 65 rows and 55 products to form factors; the tables of
`_tables`, whose rows hold a gradient and so every monomial once per variable, have 2,601 entries.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from eqtp.kernels.symmetric_contraction._tables import half_turns
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["Entry", "Factorisation", "Row", "factorise"]

Monomial = tuple[int, ...]
"""Components that a monomial multiplies, ascending."""


@dataclass(frozen=True)
class Entry:
    """c F_right with c = sum_k coefficient_k weight_k, in `couplings` as pairs (k, coefficient)."""

    right: int
    couplings: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Row:
    """P_out += F_left sum of entries."""

    out: int
    left: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Factorisation:
    """The polynomials of a problem.

    Attributes:
        products: Factors 0 ... d are 1, A_1 ... A_d; factor d + 1 + i is the product of the
            factors products[i].
        rows: The rows, those that share factors next to one another.
    """

    products: tuple[tuple[int, int], ...]
    rows: tuple[Row, ...]


@functools.lru_cache(maxsize=64)
def factorise(problem: SymmetricContractionProblem) -> Factorisation:
    """Writes the polynomials of a problem as sums of products of factors."""
    couplings = _couplings(problem)
    splits = _split({monomial for _, monomial in couplings})
    factors = _factors(problem.dim_in, itertools.chain(*splits.values()))
    number = {factor: index for index, factor in enumerate(factors)}

    rows: dict[tuple[int, Monomial], list[Entry]] = defaultdict(list)
    for (out, monomial), terms in couplings.items():
        left, right = splits[monomial]
        rows[out, left].append(Entry(number[right], tuple(terms)))

    class_in = [*itertools.chain(*(half_turns(ir) for _, ir in problem.irreps_in))]
    class_out = [*itertools.chain(*(half_turns(ir) for _, ir in problem.irreps_out))]

    def sharing(key: tuple[int, Monomial]) -> tuple[int, Monomial, int]:
        """Right factors belong to one class of components, which decides what a row can use."""
        out, left = key
        label = functools.reduce(int.__xor__, (class_in[i] for i in left), class_out[out])
        return label, left, out

    return Factorisation(
        tuple((number[factor[:-1]], number[factor[-1:]]) for factor in factors if len(factor) > 1),
        tuple(
            Row(out, number[left], tuple(sorted(rows[out, left], key=lambda entry: entry.right)))
            for out, left in sorted(rows, key=sharing)
        ),
    )


def _couplings(
    problem: SymmetricContractionProblem,
) -> dict[tuple[int, Monomial], list[tuple[int, float]]]:
    """Of every pair (M, monomial) that occurs, the paths and their coefficients."""
    result: dict[tuple[int, Monomial], list[tuple[int, float]]] = defaultdict(list)
    first_path = 0
    for block, coupling in problem.couplings():
        monomials = [tuple(row) for row in coupling.monomials.tolist()]
        largest = coupling.coefficients.abs().amax() if coupling.num_paths else 0.0
        nonzero = coupling.coefficients.abs() > 1e-14 * largest
        for path, m, index in nonzero.nonzero().tolist():
            value = float(coupling.coefficients[path, m, index])
            result[block.start + m, monomials[index]].append((first_path + path, value))
        first_path += coupling.num_paths
    return result


def _split(monomials: Collection[Monomial]) -> dict[Monomial, tuple[Monomial, Monomial]]:
    """Left and right factor of every monomial: again and again the right factor of most of them."""
    splits: dict[Monomial, tuple[Monomial, Monomial]] = {}
    choices = {
        monomial: sorted(set(itertools.combinations(monomial, (len(monomial) + 1) // 2)))
        for monomial in sorted(monomials)
    }
    users: dict[Monomial, list[Monomial]] = defaultdict(list)
    for monomial, rights in choices.items():
        for right in rights:
            users[right].append(monomial)
    open_users = Counter({right: len(using) for right, using in users.items()})
    while len(splits) < len(choices):
        right = max(open_users, key=open_users.__getitem__)
        for monomial in users[right]:
            if monomial not in splits:
                splits[monomial] = _quotient(monomial, right), right
                open_users.subtract(choices[monomial])
    return splits


def _quotient(monomial: Monomial, factor: Monomial) -> Monomial:
    return tuple(sorted((Counter(monomial) - Counter(factor)).elements()))


def _factors(dim: int, needed: Iterable[Monomial]) -> list[Monomial]:
    """1, all components, and the needed monomials with what they are products of."""
    factors = {(), *((i,) for i in range(dim))}
    for factor in needed:
        factors.update(factor[:length] for length in range(1, len(factor) + 1))
    return sorted(factors, key=lambda factor: (len(factor), factor))
