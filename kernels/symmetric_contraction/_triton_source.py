"""Triton source of one kernel of the symmetric contraction; `_triton` says how kernels are used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from textwrap import indent

from eqtp.kernels.codegen.program import Program, Statement, Variable
from eqtp.kernels.codegen.tangent import TANGENT, needed, tangent
from eqtp.kernels.codegen.triton import print_statements
from eqtp.kernels.symmetric_contraction._factors import factorise
from eqtp.kernels.symmetric_contraction._program import SUMS, row_statements
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["FUNCTION", "Kernel"]

FUNCTION = "symmetric_contraction"


@dataclass(frozen=True)
class Kernel:
    """What one kernel does: some rows of the polynomials, for a block of channels.

    With the result grad_weight a program walks the nodes of an item of work, neighbours in the
    order of elements, and keeps the sums; otherwise it does one node.

    Attributes:
        problem: The contraction.
        rows: Numbers of the rows.
        results: Names of the results, all or none of them "grad_weight".
        dual: Whether the results are the derivatives in the direction h of x.
        begun: The components of results that an earlier kernel has begun and this one adds to.
        real: Triton's type of the arithmetic.
        channels: Channels of a program.
    """

    problem: SymmetricContractionProblem
    rows: tuple[int, ...]
    results: tuple[str, ...]
    dual: bool
    begun: frozenset[Variable]
    real: str
    channels: int

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """What is computed for a node."""
        factorisation = factorise(self.problem)
        rows = [factorisation.rows[number] for number in self.rows]
        statements = row_statements(factorisation, rows, self.problem.dim_in, set(self.results))
        if self.dual:
            statements = list(tangent(statements, {"x": "h"}))
        return tuple(needed(statements, {self._variable(name) for name in self.results}))

    @cached_property
    def written(self) -> tuple[Variable, ...]:
        """The components of results that the kernel writes."""
        names = {self._variable(name): name for name in self.results}
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

    def _variable(self, result: str) -> str:
        """Name of a result in the statements."""
        return TANGENT + result if self.dual else result

    def _address(self, variable: Variable) -> str:
        (component,) = variable.indices
        return f"{variable.name}_row + {component * self.problem.num_channels}"

    @property
    def _mask(self) -> str:
        return "" if self.problem.num_channels % self.channels == 0 else ", mask=inside"

    def _load(self, variable: Variable) -> str:
        other = ", other=0.0" if self._mask else ""
        return f"tl.load({self._address(variable)}{self._mask}{other}).to({self.real})"

    def _store(self, variable: Variable) -> str:
        result, component = variable.name, variable.indices
        value = str(Variable(self._variable(result), component))
        before = f"{self._load(variable)} + " if variable in self.begun else ""
        value = f"({before}{value}).to({result}.dtype.element_ty)"
        return f"tl.store({self._address(variable)}, {value}{self._mask})"

    def _row(self, name: str) -> str:
        """The line that points to a row of an operand or a result."""
        problem = self.problem
        dims = {
            **dict.fromkeys(("x", "h", "grad_x"), problem.dim_in),
            **dict.fromkeys(("grad", "out"), problem.dim_out),
            **dict.fromkeys(("weight", "grad_weight"), problem.num_paths),
        }
        row = {"weight": "weight_index", "grad_weight": "item"}.get(name, "index")
        return f"{name}_row = {name} + {row} * {dims[name] * problem.num_channels} + lane"

    @cached_property
    def source(self) -> str:
        """The function."""
        body = self._walk() if self._walks else self._node()
        lines = [
            f"lane = tl.program_id(1) * {self.channels} + tl.arange(0, {self.channels})",
            f"inside = lane < {self.problem.num_channels}",
            *body,
            *(self._store(variable) for variable in self.written),
        ]
        return f"""\
@triton.jit
def {FUNCTION}({", ".join(self.arguments)}):
{indent(chr(10).join(lines), "    ")}
"""

    def _node(self) -> list[str]:
        lines = ["index = tl.program_id(0).to(tl.int64)"]
        if "weight" in self.arguments:
            lines.append("weight_index = tl.load(element + index)")
        lines += [self._row(name) for name in self.arguments if name != "element"]
        return [*lines, *self._lines(set())]

    def _walk(self) -> list[str]:
        sums = {str(Variable(self._variable(v.name), v.indices)) for v in self.written}
        operands = [name for name in self.arguments if name in ("x", "grad", "h")]
        return [
            "item = tl.program_id(0).to(tl.int64)",
            *(self._row(name) for name in self.results),
            "position = tl.load(item_start + item)",
            "stop = tl.load(item_stop + item)",
            *(f"{name} = tl.zeros([{self.channels}], {self.real})" for name in sorted(sums)),
            "while position < stop:",
            "    index = tl.load(node + position)",
            *(f"    {self._row(name)}" for name in operands),
            *(f"    {line}" for line in self._lines(sums)),
            "    position += 1",
        ]

    def _lines(self, known: set[str]) -> list[str]:
        return [*print_statements(Program(self.statements), str, self._load, SUMS, known)]
