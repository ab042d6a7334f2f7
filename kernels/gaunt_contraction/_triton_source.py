"""Triton source of a kernel of the flat many-body Gaunt product; `_triton` says how it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from textwrap import indent

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen.program import Program, Statement, Variable
from eqtp.kernels.codegen.tangent import TANGENT
from eqtp.kernels.codegen.triton import print_statements
from eqtp.kernels.gaunt_contraction._program import SUMS, Parts, flat_program, orbits_of

__all__ = ["FUNCTION", "Kernel"]

FUNCTION = "gaunt_contraction"


@dataclass(frozen=True)
class Kernel:
    """What one kernel does: some components of the results, for a block of channels.

    With the result grad_weight a program walks the nodes of an item of work, neighbours in the
    order of elements, and keeps the sums; otherwise it does one node.

    Attributes:
        problem: The product, in the flat form.
        written: The components of out, grad_x and grad_weight; the last never with the others.
        dual: Whether they are the derivatives in the direction h of x.
        real: Triton's type of the arithmetic.
        channels: Channels of a program.
    """

    problem: GauntContractionProblem
    written: tuple[Variable, ...]
    dual: bool
    real: str
    channels: int

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

    @cached_property
    def source(self) -> str:
        """The function."""
        body = self._walk() if self._walks else self._node()
        lines = [
            f"lane = tl.program_id(1) * {self.channels} + tl.arange(0, {self.channels})",
            f"inside = lane < {self.problem.num_channels}",
            *body,
        ]
        return f"""\
@triton.jit
def {FUNCTION}({", ".join(self.arguments)}):
{indent(chr(10).join(lines), "    ")}
"""

    def _node(self) -> list[str]:
        lines = ["index = tl.program_id(0).to(tl.int64)"]
        lines += ["weight_index = tl.load(element + index)", "constants = table"]
        lines += [self._row(name) for name in self.arguments if name not in ("element", "table")]
        lines += self._lines(set(), set())
        return [*lines, *(self._store(variable) for variable in self.written)]

    def _walk(self) -> list[str]:
        sums = [str(self._value(variable)) for variable in self.written]
        operands = [name for name in self.arguments if name in ("x", "weight", "grad", "h")]
        lines = ["item = tl.program_id(0).to(tl.int64)", self._row("grad_weight")]
        lines += ["position = tl.load(item_start + item)", "stop = tl.load(item_stop + item)"]
        return [
            *lines,
            *(f"{name} = tl.zeros([{self.channels}], {self.real})" for name in sums),
            "while position < stop:",
            "    index = tl.load(node + position)",
            "    weight_index = tl.load(element + index)",
            # The same address, but the compiler cannot tell: it would load all constants before the
            # loop over nodes and spill them (gfx942: 244 scalar registers).
            "    constants = table + tl.minimum(weight_index, 0)",
            *(f"    {self._row(name)}" for name in operands),
            *(f"    {line}" for line in self._lines(set(sums), {"grad_weight"})),
            "    position += 1",
            *(self._store(variable) for variable in self.written),
        ]

    def _lines(self, known: set[str], sums: set[str]) -> Iterator[str]:
        """The node's statements: before, a loop over the orbits of every kind, after."""
        sums = {*SUMS, *sums, *(TANGENT + name for name in sums)}
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

    def _value(self, variable: Variable) -> Variable:
        """A result's component, as the statements call it."""
        return Variable(TANGENT + variable.name if self.dual else variable.name, variable.indices)

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
        name = str(self._value(variable))
        if not self._walks and name not in {str(s.target) for s in self.parts.after}:
            name = f"tl.zeros([{self.channels}], {self.real})"  # vanishes identically
        value = f"{name}.to({variable.name}.dtype.element_ty)"
        return f"tl.store({self._address(variable)}, {value}{self._mask})"

    def _row(self, name: str) -> str:
        """The line that points to a row of an operand or a result."""
        problem = self.problem
        dims = {
            **dict.fromkeys(("x", "h", "grad_x"), problem.dim_in),
            **dict.fromkeys(("grad", "out"), problem.dim_out),
            **dict.fromkeys(("weight", "grad_weight"), problem.num_weights),
        }
        row = {"weight": "weight_index", "grad_weight": "item"}.get(name, "index")
        return f"{name}_row = {name} + {row} * {dims[name] * problem.num_channels} + lane"
