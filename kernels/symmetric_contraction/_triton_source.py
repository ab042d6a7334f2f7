"""Triton source of one kernel of the symmetric contraction; `_triton` says how kernels are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from eqtp.kernels.codegen.polynomial_triton_source import PolynomialKernel
from eqtp.kernels.codegen.program import Program, Statement, Variable
from eqtp.kernels.codegen.tangent import needed, tangent
from eqtp.kernels.codegen.triton import print_statements
from eqtp.kernels.symmetric_contraction._factors import factorise
from eqtp.kernels.symmetric_contraction._program import SUMS, row_statements
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["Kernel"]


@dataclass(frozen=True)
class Kernel(PolynomialKernel):
    """Some rows of the polynomials.

    Attributes:
        problem: The contraction.
        rows: Numbers of the rows.
        results: Names of the results, all or none of them "grad_weight".
        begun: The components of results that an earlier kernel has begun and this one adds to.
    """

    problem: SymmetricContractionProblem
    rows: tuple[int, ...]
    results: tuple[str, ...]
    begun: frozenset[Variable]

    function = "symmetric_contraction"

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """What is computed for a node."""
        factorisation = factorise(self.problem)
        rows = [factorisation.rows[number] for number in self.rows]
        statements = row_statements(factorisation, rows, self.problem.dim_in, set(self.results))
        if self.dual:
            statements = list(tangent(statements, {"x": "h"}))
        return tuple(needed(statements, set(self._names)))

    @cached_property
    def written(self) -> tuple[Variable, ...]:
        """The components of results that the kernel writes."""
        names = self._names
        targets = (statement.target for statement in self.statements)
        found = {
            Variable(names[target.name], target.indices)
            for target in targets
            if target.name in names
        }
        return tuple(sorted(found))

    @cached_property
    def num_products(self) -> int:
        """Number of products of all statements."""
        return sum(len(statement.products) for statement in self.statements)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The function's arguments."""
        operands = ("x", "weight", "grad", "h")
        read = {variable.name for variable in Program(self.statements).operands}
        index = ("node", "item_start", "item_stop") if self._walks else ("element",)
        return (*(name for name in operands if name in read), *self.results, *index)

    @property
    def _walks(self) -> bool:
        return "grad_weight" in self.results

    @property
    def _names(self) -> dict[str, str]:
        """Names of the results in the statements, and their own."""
        return {self._value(Variable(name)).name: name for name in self.results}

    @property
    def _sums(self) -> list[str]:
        return sorted(str(self._value(variable)) for variable in self.written)

    def _lines(self, known: set[str]) -> Iterator[str]:
        return print_statements(Program(self.statements), str, self._load, SUMS, known)

    def _stores(self) -> list[str]:
        return [self._store(variable, f"({self._total(variable)})") for variable in self.written]

    def _total(self, variable: Variable) -> str:
        """A result's component, with what earlier kernels have found."""
        before = f"{self._load(variable)} + " if variable in self.begun else ""
        return f"{before}{self._value(variable)}"
