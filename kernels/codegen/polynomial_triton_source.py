"""The frame of the Triton source of a kernel of polynomials of node features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from textwrap import indent
from typing import ClassVar

from eqtp.kernels.codegen.polynomial_operands import PolynomialProblem
from eqtp.kernels.codegen.program import Variable
from eqtp.kernels.codegen.tangent import TANGENT

__all__ = ["PolynomialKernel"]

_OPERANDS = ("x", "weight", "grad", "h")
_RESULTS = ("out", "grad_x", "grad_weight")


@dataclass(frozen=True)
class PolynomialKernel(ABC):
    """What one kernel does: some components of the results, for a block of channels.

    With the result grad_weight a program walks the nodes of an item of work, neighbours in the
    order of elements, and keeps the sums; otherwise it does one node.

    Attributes:
        problem: The polynomials.
        dual: Whether the results are the derivatives in the direction h of x.
        real: Triton's type of the arithmetic.
        channels: Channels of a program.
    """

    problem: PolynomialProblem
    dual: bool
    real: str
    channels: int

    function: ClassVar[str]
    """Name of the function."""

    @property
    @abstractmethod
    def arguments(self) -> tuple[str, ...]:
        """The function's arguments."""

    @property
    @abstractmethod
    def _walks(self) -> bool:
        """Whether a program walks nodes."""

    @property
    @abstractmethod
    def _sums(self) -> list[str]:
        """Names of the sums that are kept while nodes pass by."""

    @abstractmethod
    def _lines(self, known: set[str]) -> Iterable[str]:
        """What is computed for a node; `known` are the names that have a value."""

    @abstractmethod
    def _stores(self) -> list[str]:
        """The lines that store the results."""

    @cached_property
    def source(self) -> str:
        """The function."""
        lines = [
            f"lane = tl.program_id(1) * {self.channels} + tl.arange(0, {self.channels})",
            f"inside = lane < {self.problem.num_channels}",
            *(self._walk() if self._walks else self._node()),
            *self._stores(),
        ]
        return f"""\
@triton.jit
def {self.function}({", ".join(self.arguments)}):
{indent(chr(10).join(lines), "    ")}
"""

    def _node(self) -> list[str]:
        rows = [name for name in self.arguments if name in (*_OPERANDS, *_RESULTS)]
        return [
            "index = tl.program_id(0).to(tl.int64)",
            *self._element(),
            *map(self._row, rows),
            *self._lines(set()),
        ]

    def _walk(self) -> list[str]:
        operands = [name for name in self.arguments if name in _OPERANDS]
        node = [
            "index = tl.load(node + position)",
            *self._element(),
            *map(self._row, operands),
            *self._lines(set(self._sums)),
            "position += 1",
        ]
        return [
            "item = tl.program_id(0).to(tl.int64)",
            self._row("grad_weight"),
            "position = tl.load(item_start + item)",
            "stop = tl.load(item_stop + item)",
            *(f"{name} = tl.zeros([{self.channels}], {self.real})" for name in self._sums),
            "while position < stop:",
            *(f"    {line}" for line in node),
        ]

    def _element(self) -> list[str]:
        """The lines that depend on the node's element alone."""
        return ["weight_index = tl.load(element + index)"] if "weight" in self.arguments else []

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

    def _store(self, variable: Variable, value: str) -> str:
        kind = f"{variable.name}.dtype.element_ty"
        return f"tl.store({self._address(variable)}, {value}.to({kind}){self._mask})"
