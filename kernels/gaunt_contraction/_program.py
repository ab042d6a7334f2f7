"""The flat many-body Gaunt product as straight-line programs: one per part of a kernel.

For one node and one channel, with the orbits of `_orbits` (`y` and `a` are the constants of the
orbit at hand):

    before      f_h = sum_b u_b x_bh,     c_kh = sum_b w_k n_k grad_bh
    an orbit    S_class = sum y_h f_h,    F = signed sums of S
                T = signed sums of F^k,   parts_kh += a_h T_class
                C_k = signed sums of sum a_h c_kh,   bar_F = sum_k k F^(k-1) C_k
                bar_f_h += y_h (signed sums of bar_F)
    after       out = sum_k w_k n_k parts_k,    grad_w_k = n_k <grad, parts_k>
                grad_x = u bar_f,               grad_u = <bar_f, x>

The second gradient in the direction h of x is the derivative of every statement (`tangent`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen.program import Product, Statement, Variable
from eqtp.kernels.codegen.tangent import TANGENT, needed, tangent
from eqtp.kernels.gaunt_contraction._orbits import Orbits, butterfly, grid_orbits
from eqtp.kernels.gaunt_contraction.reference import block_of_component, harmonic_of_component

__all__ = ["SUMS", "Parts", "flat_program", "orbits_of"]

SUMS = frozenset(prefix + name for name in ("parts", "bar_f") for prefix in ("", TANGENT))
"""What the orbits add to."""


@dataclass(frozen=True)
class Parts:
    """The statements of a kernel.

    Attributes:
        before: What comes before the orbits.
        orbits: What is done for every orbit, per kind of orbits.
        after: What comes after them.
    """

    before: tuple[Statement, ...]
    orbits: tuple[tuple[Statement, ...], ...]
    after: tuple[Statement, ...]


def orbits_of(problem: GauntContractionProblem) -> tuple[Orbits, ...]:
    """The grid of a problem."""
    return grid_orbits(problem.grid_degree, max(*problem.degrees_in, *problem.degrees_out))


def flat_program(
    problem: GauntContractionProblem, results: Iterable[Variable], dual: bool
) -> Parts:
    """What computes some components of out, grad_x and grad_weight.

    Args:
        problem: A product in the flat form.
        results: The components.
        dual: Whether their derivatives in the direction h of x are wanted; these are named
            `TANGENT` + the result's name.
    """
    writer = _Writer(problem)
    parts = [
        writer.before(),
        *(writer.orbit(number, kind) for number, kind in enumerate(orbits_of(problem))),
        writer.after(),
    ]
    wanted = [Variable(TANGENT + v.name if dual else v.name, v.indices) for v in results]
    if dual:
        moving: set[Variable] = set()
        parts = [[*tangent(part, {"x": "h"}, moving)] for part in parts]
    read: set[Variable] = set()
    kept = [tuple(needed(part, wanted, read)) for part in reversed(parts)][::-1]
    return Parts(kept[0], tuple(kept[1:-1]), kept[-1])


class _Writer:
    """The statements of one problem."""

    def __init__(self, problem: GauntContractionProblem) -> None:
        self.problem = problem
        self.harmonics_in = harmonic_of_component(problem.degrees_in)
        self.harmonics_out = harmonic_of_component(problem.degrees_out)
        self.u = block_of_component(problem.degrees_in)
        self.blocks_out = block_of_component(problem.degrees_out)
        self.powers = range(1, problem.correlation + 1)

    def w(self, component: int, power: int) -> tuple[Variable, float]:
        """The weight of a component of the result, and its constant."""
        block = self.blocks_out[component]
        row = self.problem.power_weights(block).start + power - 1
        return Variable("weight", (row,)), self.problem.norm[block][power - 1]

    def before(self) -> list[Statement]:
        """f, the derivatives c of the result, and bar_f of the first power."""
        f, c = defaultdict(list), defaultdict(list)
        for i, harmonic in enumerate(self.harmonics_in):
            f[harmonic].append(_p(_v("weight", self.u[i]), _v("x", i)))
        for i, harmonic in enumerate(self.harmonics_out):
            for power in self.powers:
                weight, norm = self.w(i, power)
                c[power, harmonic].append(_p(weight, _v("grad", i), coefficient=norm))
        return [
            *(_s(_v("f", h), products) for h, products in sorted(f.items())),
            *(_s(_v("c", *key), products) for key, products in sorted(c.items())),
            *(_s(_v("bar_f", h), [_p(_v("c", 1, h))]) for h in sorted(f) if (1, h) in c),
        ]

    def orbit(self, number: int, kind: Orbits) -> list[Statement]:
        """What an orbit adds to the parts and to bar_f."""
        inputs, outputs = sorted(set(self.harmonics_in)), sorted(set(self.harmonics_out))
        points = range(1 << kind.num_bits)
        statements: list[Statement] = []

        def signed(name: str, sums: dict[int, list[Product]]) -> None:
            """Values name_point from the sums of classes."""
            statements.extend(_s(_v(name, number, 0, p), terms) for p, terms in sums.items())
            statements.extend(_butterfly(name, number, kind.num_bits, sorted(sums), points))

        def value(name: str, point: int) -> Variable:
            return _v(name, number, kind.num_bits, point)

        def add_to(target: str, power: tuple[int, ...], table: str, harmonics: list[int]) -> None:
            """Projects the values V."""
            columns = _columns(kind, harmonics)
            places = sorted({place for _, place, _ in columns})
            name = "_".join(["V", *map(str, power)])
            statements.extend(_butterfly(name, number, kind.num_bits, points, places))
            statements.extend(
                _s(_v(target, *power, h), [_p(_v(table, number, j), value(name, place))])
                for h, place, j in columns
            )

        signed("F", _sums(number, kind, "y", "f", (), inputs))
        for power in self.powers[1:]:
            before = "F" if power == 2 else f"V_{power - 1}"
            level = kind.num_bits if power == 2 else 0
            for p in points:
                factors = _v(before, number, level, p), value("F", p)
                statements.append(_s(_v(f"V_{power}", number, 0, p), [_p(*factors)]))
            add_to("parts", (power,), "a", outputs)
        for power in reversed(self.powers[1:]):
            signed(f"C_{power}", _sums(number, kind, "a", "c", (power,), outputs))
            for p in points:
                terms = [_p(value(f"C_{power}", p), value("F", p), coefficient=float(power))]
                if power < self.problem.correlation:
                    terms.append(_p(_v(f"bar_{power + 1}", number, p), value("F", p)))
                target = _v(f"bar_{power}", number, p) if power > 2 else _v("V", number, 0, p)
                statements.append(_s(target, terms))
        if self.problem.correlation > 1:
            add_to("bar_f", (), "y", inputs)
        return statements

    def after(self) -> list[Statement]:
        """The results."""
        statements = []
        present = set(self.harmonics_in)
        gradients = defaultdict(list)
        for i, harmonic in enumerate(self.harmonics_out):
            terms = []
            for power in self.powers:
                if power == 1 and harmonic not in present:
                    continue
                part = _v("f", harmonic) if power == 1 else _v("parts", power, harmonic)
                weight, norm = self.w(i, power)
                terms.append(_p(weight, part, coefficient=norm))
                product = _p(_v("grad", i), part, coefficient=norm)
                gradients[weight.indices].append(product)
            if terms:
                statements.append(_s(_v("out", i), terms))
        linear = self.problem.correlation == 1
        for i, harmonic in enumerate(self.harmonics_in):
            if linear and harmonic not in self.harmonics_out:
                continue  # the result does not depend on it
            bar = _v("bar_f", harmonic)
            statements.append(_s(_v("grad_x", i), [_p(_v("weight", self.u[i]), bar)]))
            gradients[self.u[i],].append(_p(bar, _v("x", i)))
        statements += [_s(_v("grad_weight", *row), terms) for row, terms in gradients.items()]
        return statements


def _columns(kind: Orbits, harmonics: Sequence[int]) -> list[tuple[int, int, int]]:
    """(harmonic, class, column) of those that do not vanish."""
    column = {h: j for j, h in enumerate(kind.harmonics)}
    return [(h, kind.place(h), column[h]) for h in harmonics if h in column]


def _sums(
    number: int,
    kind: Orbits,
    table: str,
    name: str,
    power: tuple[int, ...],
    harmonics: Sequence[int],
) -> dict[int, list[Product]]:
    """Sums over the harmonics of every class of table_h name_h."""
    sums: dict[int, list[Product]] = {}
    for harmonic, place, column in _columns(kind, harmonics):
        term = _p(_v(table, number, column), _v(name, *power, harmonic))
        sums.setdefault(place, []).append(term)
    return sums


def _butterfly(
    name: str, number: int, num_bits: int, present: Sequence[int], wanted: Sequence[int]
) -> list[Statement]:
    statements = []
    for line in butterfly(num_bits, present, wanted):
        terms = [_p(_v(name, number, *line.left))] if line.left else []
        if line.right:
            terms.append(_p(_v(name, number, *line.right), coefficient=float(line.sign)))
        statements.append(_s(_v(name, number, *line.target), terms))
    return statements


def _v(name: str, *indices: int) -> Variable:
    return Variable(name, indices)


def _p(*factors: Variable, coefficient: float = 1.0) -> Product:
    return Product(factors, coefficient)


def _s(target: Variable, products: Iterable[Product]) -> Statement:
    return Statement(target, "channel", tuple(products))
