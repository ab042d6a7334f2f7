"""Triton source of a kernel of the flat many-body Gaunt product; `_triton` says how it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen.polynomial_triton_source import PolynomialKernel
from eqtp.kernels.codegen.program import Program, Statement, Variable
from eqtp.kernels.codegen.tangent import TANGENT
from eqtp.kernels.codegen.triton import print_statements
from eqtp.kernels.gaunt_contraction._program import SUMS, Parts, flat_program, orbits_of

__all__ = ["Kernel"]


@dataclass(frozen=True)
class Kernel(PolynomialKernel):
    """Some components of the results, orbit by orbit.

    Attributes:
        problem: The product, in the flat form.
        written: The components of out, grad_x and grad_weight; the last never with the others.
    """

    problem: GauntContractionProblem
    written: tuple[Variable, ...]

    function = "gaunt_contraction"

    @cached_property
    def parts(self) -> Parts:
        """What is computed for a node."""
        return flat_program(self.problem, self.written, self.dual)

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the results, in order."""
        return tuple(dict.fromkeys(variable.name for variable in self.written))

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The function's arguments."""
        statements = [*self.parts.before, *self.parts.after]
        read = {variable.name for variable in Program(tuple(statements)).operands}
        operands = [name for name in ("x", "weight", "grad", "h") if name in read]
        items = ("node", "item_start", "item_stop") if self._walks else ()
        return (*operands, "table", *self.results, "element", *items)

    @property
    def _walks(self) -> bool:
        return "grad_weight" in self.results

    @property
    def _sums(self) -> list[str]:
        return [str(self._value(variable)) for variable in self.written]

    def _element(self) -> list[str]:
        """The row of weights, and where the table is."""
        # The same address, but the compiler cannot tell: it would load all constants before the
        # loop over nodes and spill them (gfx942: 244 scalar registers).
        offset = " + tl.minimum(weight_index, 0)" if self._walks else ""
        return ["weight_index = tl.load(element + index)", f"constants = table{offset}"]

    def _lines(self, known: set[str]) -> Iterator[str]:
        """The node's statements: before, a loop over the orbits of every kind, after."""
        sums = {*SUMS, *(("grad_weight", TANGENT + "grad_weight") if self._walks else ())}
        yield from print_statements(Program(self.parts.before), str, self._load, sums, known)
        known |= {str(statement.target) for statement in self.parts.before}
        targets = [s.target for part in self.parts.orbits for s in part]
        for name in dict.fromkeys(str(v) for v in targets if v.name in SUMS):
            if name not in known:
                known.add(name)
                yield f"{name} = tl.zeros([{self.channels}], {self.real})"
        start = 0
        for kind, statements in zip(orbits_of(self.problem), self.parts.orbits, strict=True):
            width = 2 * len(kind.harmonics)
            yield from self._loop(statements, start, width, len(kind.synthesis), sums, known)
            start += width * len(kind.synthesis)
        yield from print_statements(Program(self.parts.after), str, self._load, sums, known)

    def _loop(
        self,
        statements: Sequence[Statement],
        start: int,
        width: int,
        count: int,
        sums: set[str],
        known: set[str],
    ) -> Iterator[str]:
        """One kind of orbits: their constants are rows of y and then a, from `start` on."""

        def load(variable: Variable) -> str:
            column = variable.indices[1] + (width // 2 if variable.name == "a" else 0)
            return f"tl.load(orbit_row + {column})"

        if not statements:
            return
        yield f"for orbit in range({count}):"
        yield f"    orbit_row = constants + {start} + orbit * {width}"
        lines = print_statements(Program(tuple(statements)), str, load, sums, known)
        yield from (f"    {line}" for line in lines)

    def _stores(self) -> list[str]:
        known = set(self._sums if self._walks else (str(s.target) for s in self.parts.after))
        zeros = f"tl.zeros([{self.channels}], {self.real})"  # what vanishes identically
        values = zip(self.written, self._sums, strict=True)
        return [self._store(v, value if value in known else zeros) for v, value in values]
