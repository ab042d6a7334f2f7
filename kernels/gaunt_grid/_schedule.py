"""What a call computes, as factors, sums of products and outputs: the kernels' common table.

The form has six slots, an operand and its weights for each of f, g and h:

    T = sum_z sum_c sum_p weight_p  F(a x1)(p) G(b x2)(p) H(c out)(p)

with one weight per degree. A factor is an operand times weights, transformed once. A sum adds up
products of factors' values on the grid and is transformed back once; its outputs are derivatives in
an operand (times the weights of the same slot) or in weights (times the operand, summed over m).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from eqtp.kernels.codegen.multilinear_terms import Term
from eqtp.kernels.gaunt_grid._transforms import COUPLINGS

__all__ = ["Factor", "Output", "Product", "Schedule", "schedule"]


@dataclass(frozen=True)
class Factor:
    """An operand times weights.

    Attributes:
        slot: f, g or h: 0, 1 or 2.
        operand: Number of the operand.
        weight: Number of the weights; None for 1.
    """

    slot: int
    operand: int
    weight: int | None


@dataclass(frozen=True)
class Product:
    """A product of two fields, added to a field of a sum; `begins` if it is the first there."""

    sum: int
    field: int
    a: int
    field_a: int
    b: int
    field_b: int
    begins: bool
    sign: float


@dataclass(frozen=True)
class Output:
    """A result that a sum adds to.

    Attributes:
        result: Number of the result.
        sum: Number of the sum.
        is_weight: Whether it is a derivative in weights.
        companion: Number of the operand, or weights (None for 1), that it is multiplied by.
        begins: Whether it is the first that is added to the result.
    """

    result: int
    sum: int
    is_weight: bool
    companion: int | None
    begins: bool


@dataclass(frozen=True)
class Schedule:
    """A call's table; `sums` are the slots of the sums."""

    factors: tuple[Factor, ...]
    sums: tuple[int, ...]
    products: tuple[Product, ...]
    outputs: tuple[Output, ...]

    @property
    def results(self) -> tuple[int, ...]:
        """Numbers of the results."""
        return tuple(dict.fromkeys(output.result for output in self.outputs))

    def only(self, results: Collection[int]) -> Schedule:
        """What some of the results take."""
        outputs = [output for output in self.outputs if output.result in results]
        sums = sorted({output.sum for output in outputs})
        products = [product for product in self.products if product.sum in sums]
        factors = sorted({number for p in products for number in (p.a, p.b)})
        return Schedule(
            tuple(self.factors[number] for number in factors),
            tuple(self.sums[number] for number in sums),
            tuple(
                replace(p, sum=sums.index(p.sum), a=factors.index(p.a), b=factors.index(p.b))
                for p in products
            ),
            tuple(replace(output, sum=sums.index(output.sum)) for output in outputs),
        )

    def apart(self) -> tuple[Schedule, ...]:
        """One schedule for every sum and pair of factors; their results are to be added."""
        parts = []
        for number in range(len(self.sums)):
            of_sum = [product for product in self.products if product.sum == number]
            outputs = _begun([output for output in self.outputs if output.sum == number])
            for pair in dict.fromkeys((product.a, product.b) for product in of_sum):
                products = [product for product in of_sum if (product.a, product.b) == pair]
                fields = [product.field for product in products]
                products = [
                    replace(product, begins=product.field not in fields[:i])
                    for i, product in enumerate(products)
                ]
                part = replace(self, products=tuple(products), outputs=outputs)
                parts.append(part.only(part.results))
        return tuple(parts)


@lru_cache(maxsize=1024)
def schedule(
    odd: bool, terms: tuple[Term, ...], given: frozenset[int], ones: frozenset[int]
) -> Schedule:
    """The table of some terms.

    Args:
        odd: Whether the product is the surface curl.
        terms: Operands and results of the slots (x1, a, x2, b, out, c).
        given: Numbers of the operands that are given.
        ones: Numbers of the weights that are 1; other operands that are not given are 0.
    """
    factors: dict[Factor, int] = {}
    wanted: dict[tuple[int, int, int | None], list[tuple[int, int]]] = {}
    for term in terms:
        present = [_factor(term, slot, given, ones) for slot in range(3)]
        for place, result in enumerate(term.results):
            slot, is_weight = divmod(place, 2)
            first, second = (factor for other, factor in enumerate(present) if other != slot)
            companion = term.operands[place ^ 1]
            if companion in ones:
                companion = None
            elif companion not in given:
                continue
            if result is None or first is None or second is None:
                continue
            pair = tuple(factors.setdefault(factor, len(factors)) for factor in (first, second))
            key = result, 2 * slot + is_weight, companion
            wanted.setdefault(key, []).append((pair[0], pair[1]))
    sums: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {}
    outputs: list[Output] = []
    for (result, place, companion), pairs in wanted.items():
        slot, is_weight = divmod(place, 2)
        number = sums.setdefault((slot, tuple(sorted(pairs))), len(sums))
        outputs.append(Output(result, number, bool(is_weight), companion, False))
    products: list[Product] = []
    for (slot, pairs_of_sum), number in sums.items():
        products += _products(odd, slot, pairs_of_sum, number)
    outputs.sort(key=lambda output: output.sum)
    return Schedule(
        tuple(factors), tuple(slot for slot, _ in sums), tuple(products), _begun(outputs)
    )


def _begun(outputs: Sequence[Output]) -> tuple[Output, ...]:
    """The outputs in the order in which they are written, the first of every result marked."""
    seen: set[int] = set()
    marked = []
    for output in outputs:
        begins = output.result not in seen
        seen.add(output.result)
        marked.append(replace(output, begins=begins))
    return tuple(marked)


def _factor(term: Term, slot: int, given: Collection[int], ones: Collection[int]) -> Factor | None:
    operand, weight = term.operands[2 * slot : 2 * slot + 2]
    if operand is None or operand not in given or weight is None:
        return None
    if weight in ones:
        return Factor(slot, operand, None)
    return Factor(slot, operand, weight) if weight in given else None


def _products(odd: bool, slot: int, pairs: Sequence[tuple[int, int]], number: int) -> list[Product]:
    first, second = (other for other in range(3) if other != slot)
    products: list[Product] = []
    begun: set[int] = set()
    for a, b in pairs:
        for fields, sign in COUPLINGS[odd]:
            begins = fields[slot] not in begun
            begun.add(fields[slot])
            products.append(
                Product(number, fields[slot], a, fields[first], b, fields[second], begins, sign)
            )
    return products
