"""The formulas of some rows of the polynomials, from the value to the second gradient.

For one node and one channel (`_factors` says what rows, entries and factors are):

    F_f = F_a F_b                                                  factors that are products
    c_e = sum_k coefficient_k weight_k,   s = sum_e c_e F_e        of every row (M, left)
    out_M += F_left s
    bar F_left += grad_M s,   d = grad_M F_left                    reverse mode
    bar F_e += c_e d,         bar weight_k += d sum_e coefficient_k F_e
    bar F_a += bar F_f F_b,   bar F_b += bar F_f F_a

in an order that keeps few values alive: a factor is made where it is first used, and its bar goes
on to what it is a product of as soon as no row needs it any more. The second gradient in the
direction h of x is the derivative of every statement (`tangent`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence, Set

from eqtp.kernels.codegen.program import Product, Statement, Variable
from eqtp.kernels.codegen.tangent import TANGENT
from eqtp.kernels.symmetric_contraction._factors import Factorisation, Row

__all__ = ["RESULTS", "SUMS", "row_statements"]

RESULTS = ("out", "grad_x", "grad_weight")
SUMS = frozenset(prefix + name for name in (*RESULTS, "bar") for prefix in ("", TANGENT))
"""What several statements add to."""


def row_statements(
    factorisation: Factorisation, rows: Sequence[Row], dim_in: int, wanted: Set[str]
) -> list[Statement]:
    """The statements of some rows.

    Args:
        factorisation: The polynomials.
        rows: Those of its rows that are computed, numbered as they come.
        dim_in: Number of components of x.
        wanted: Some of `RESULTS`.
    """
    return _Writer(factorisation, rows, dim_in, wanted).statements


class _Writer:
    """Statements as they are found."""

    def __init__(
        self,
        factorisation: Factorisation,
        rows: Sequence[Row],
        dim_in: int,
        wanted: Set[str],
    ) -> None:
        self.products = factorisation.products
        self.dim_in = dim_in
        self.statements: list[Statement] = []
        self.made: set[int] = set()
        self.open = self._uses(rows)
        for number, row in enumerate(rows):
            used = {row.left, *(entry.right for entry in row.entries)}
            for factor in sorted(used):
                self.make(factor)
            if wanted & {"out", "grad_x"}:
                self.value(number, row, wanted)
            if wanted & {"grad_x", "grad_weight"}:
                self.define("d", (number,), [_p(_v("grad", row.out), *self.factor(row.left))])
            if "grad_x" in wanted:
                for e, entry in enumerate(row.entries):
                    self.add_to_bar(entry.right, _v("c", number, e), _v("d", number))
                self.close(used)
            if "grad_weight" in wanted:
                self.weights(number, row)

    def define(self, name: str, indices: tuple[int, ...], products: Iterable[Product]) -> None:
        """A sum of products."""
        self.statements.append(Statement(Variable(name, indices), "channel", tuple(products)))

    def factor(self, number: int) -> tuple[Variable, ...]:
        """A factor as variables to multiply with: none for the factor 1."""
        if number == 0:
            return ()
        return (_v("x", number - 1) if number <= self.dim_in else _v("F", number),)

    def pair(self, number: int) -> tuple[int, ...]:
        """What a factor is a product of; nothing for the components."""
        return self.products[number - self.dim_in - 1] if number > self.dim_in else ()

    def make(self, number: int) -> None:
        """Defines a factor, unless it is a component or defined already."""
        if number <= self.dim_in or number in self.made:
            return
        self.made.add(number)
        for other in self.pair(number):
            self.make(other)
        variables = (v for other in self.pair(number) for v in self.factor(other))
        self.define("F", (number,), [_p(*variables)])

    def value(self, number: int, row: Row, wanted: Set[str]) -> None:
        """The row's sum, and what it adds to."""
        for e, entry in enumerate(row.entries):
            terms = [Product((_v("weight", path),), value) for path, value in entry.couplings]
            self.define("c", (number, e), terms)
        terms = [
            _p(_v("c", number, e), *self.factor(entry.right)) for e, entry in enumerate(row.entries)
        ]
        self.define("s", (number,), terms)
        if "out" in wanted:
            self.define("out", (row.out,), [_p(_v("s", number), *self.factor(row.left))])
        if "grad_x" in wanted:
            self.add_to_bar(row.left, _v("grad", row.out), _v("s", number))

    def weights(self, number: int, row: Row) -> None:
        """What a row adds to the gradient in the weights."""
        of_path: dict[int, list[Product]] = defaultdict(list)
        for entry in row.entries:
            for path, value in entry.couplings:
                of_path[path].append(Product(self.factor(entry.right), value))
        d = _v("d", number)
        for path, products in of_path.items():
            self.define("t", (number, path), products)
            self.define("grad_weight", (path,), [_p(d, _v("t", number, path))])

    def add_to_bar(self, factor: int, *term: Variable) -> None:
        """Adds a product to the derivative in a factor."""
        if factor > self.dim_in:
            self.define("bar", (factor,), [_p(*term)])
        elif factor > 0:
            self.define("grad_x", (factor - 1,), [_p(*term)])

    def _uses(self, rows: Sequence[Row]) -> Counter[int]:
        """How often each product's bar is added to before it is complete."""
        uses: Counter[int] = Counter()
        for row in rows:
            uses.update({row.left, *(entry.right for entry in row.entries)})
        for number in range(self.dim_in + len(self.products), self.dim_in, -1):
            if uses[number]:
                uses.update(set(self.pair(number)))
        return uses

    def close(self, used: Collection[int]) -> None:
        """Passes on the bars of the products that are complete after the uses of `used`."""
        pending = sorted(used)
        while pending:
            number = pending.pop()
            self.open[number] -= 1
            if self.open[number] == 0 and number > self.dim_in:
                a, b = self.pair(number)
                for one, other in ((a, b), (b, a)):
                    self.add_to_bar(one, _v("bar", number), *self.factor(other))
                pending.extend({a, b})


def _v(name: str, *indices: int) -> Variable:
    return Variable(name, indices)


def _p(*variables: Variable) -> Product:
    return Product(variables)
