"""A kernel's mathematics as data: sums of products for one edge and one channel.

A family writes its formulas once as a `Program`, from the value to the second gradient. Asking for
some results of some operands (`Program.specialize`) removes whatever does not bear on them, and a
printer per language (`cpp.py`, `triton.py`) turns the rest into source.

Example:
    >>> program = Program((
    ...     Statement(Variable("t", (0,)), "channel", (product("x", 0, "y", 0, coefficient=2.0),)),
    ...     Statement(Variable("out", (0,)), "channel", (product("w", 0, "t", 0),)),
    ... ))
    >>> print(program.specialize({"x", "y", "w"}, {"out"}))
    t_0 = 2 * x_0 * y_0
    out_0 = w_0 * t_0
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

__all__ = ["Kind", "Product", "Program", "Statement", "Variable", "product"]

Kind = Literal["edge", "channel"]
"""What a value depends on: the edge alone, or the edge and the channel."""


class Variable(NamedTuple):
    """A component of an operand, of a result or of an intermediate."""

    name: str
    indices: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "_".join([self.name, *map(str, self.indices)])


class Product(NamedTuple):
    """A constant times some variables."""

    factors: tuple[Variable, ...]
    coefficient: float = 1.0

    def __str__(self) -> str:
        constant = [] if self.coefficient == 1.0 else [f"{self.coefficient:.17g}"]
        return " * ".join([*constant, *map(str, self.factors)])


def product(*names_and_indices: str | int, coefficient: float = 1.0) -> Product:
    """A product from names and their indices in a row: `product("M", 0, 1, "x", 1)`."""
    factors: list[Variable] = []
    for item in names_and_indices:
        if isinstance(item, str):
            factors.append(Variable(item))
        else:
            factors[-1] = Variable(factors[-1].name, (*factors[-1].indices, item))
    return Product(tuple(factors), coefficient)


@dataclass(frozen=True)
class Statement:
    """target = sum of products."""

    target: Variable
    kind: Kind
    products: tuple[Product, ...]

    def __str__(self) -> str:
        return f"{self.target} = {' + '.join(map(str, self.products))}"


@dataclass(frozen=True)
class Program:
    """Statements in order. What no statement defines is an operand."""

    statements: tuple[Statement, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.statements))

    @property
    def targets(self) -> dict[Variable, Statement]:
        """Every defined variable and its statement."""
        return {statement.target: statement for statement in self.statements}

    @property
    def operands(self) -> list[Variable]:
        """Every operand's component that is read, in order of use."""
        defined = self.targets
        read = (f for s in self.statements for p in s.products for f in p.factors)
        return list(dict.fromkeys(factor for factor in read if factor not in defined))

    def of_kind(self, kind: Kind) -> tuple[Statement, ...]:
        """The statements of one kind."""
        return tuple(statement for statement in self.statements if statement.kind == kind)

    def specialize(self, present: Collection[str], wanted: Collection[str]) -> Program:
        """The part that computes the results `wanted` where only operands `present` are not zero.

        Args:
            present: Names of operands that are given; products with any other operand vanish.
            wanted: Names of results.
        """
        defined = self.targets
        alive: set[Variable] = set()
        kept: list[Statement] = []
        for statement in self.statements:
            products = tuple(
                p
                for p in statement.products
                if all(f in alive if f in defined else f.name in present for f in p.factors)
            )
            if products:
                alive.add(statement.target)
                kept.append(replace(statement, products=products))
        return Program(tuple(kept))._needed_for(wanted)

    def _needed_for(self, wanted: Collection[str]) -> Program:
        """What results need, every statement right before its first use: few values are alive."""
        defined = self.targets
        order: dict[Variable, Statement] = {}

        def visit(statement: Statement) -> None:
            for factor in (f for p in statement.products for f in p.factors):
                if factor in defined and factor not in order:
                    visit(defined[factor])
            order[statement.target] = statement

        for statement in self.statements:
            if statement.target.name in wanted:
                visit(statement)
        return Program(tuple(order.values()))

    def count(self, kind: Kind) -> int:
        """Number of multiplications and additions of one kind, for one edge (and channel)."""
        return sum(
            len(p.factors) + (p.coefficient != 1.0) for s in self.of_kind(kind) for p in s.products
        )


def join(programs: Iterable[Program]) -> Program:
    """Programs one after the other."""
    return Program(tuple(s for program in programs for s in program.statements))
