"""Derivatives of straight-line programs along a direction, and what of a program is needed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from eqtp.kernels.codegen.program import Product, Statement, Variable

__all__ = ["TANGENT", "needed", "tangent"]

TANGENT = "along_"
"""What the names of derivatives begin with."""


def tangent(
    statements: Iterable[Statement],
    directions: Mapping[str, str],
    moving: set[Variable] | None = None,
) -> Iterator[Statement]:
    """The statements, each with the derivative along directions of the operands.

    Args:
        statements: In order; several may add to one variable.
        directions: Operand -> name of its direction; the others are constant.
        moving: The variables so far that have a derivative, where the statements are a later part
            of a program; those that get one are added.
    """
    moving = set() if moving is None else moving

    def derivative(variable: Variable) -> Variable | None:
        if variable.name in directions:
            return Variable(directions[variable.name], variable.indices)
        return Variable(TANGENT + variable.name, variable.indices) if variable in moving else None

    for statement in statements:
        yield statement
        products = tuple(
            Product((*factors[:i], along, *factors[i + 1 :]), coefficient)
            for factors, coefficient in statement.products
            for i, factor in enumerate(factors)
            if (along := derivative(factor)) is not None
        )
        if products:
            moving.add(statement.target)
            target = Variable(TANGENT + statement.target.name, statement.target.indices)
            yield Statement(target, statement.kind, products)


def needed(
    statements: Sequence[Statement],
    results: Collection[str | Variable],
    read: set[Variable] | None = None,
) -> list[Statement]:
    """The statements that results depend on, in the same order.

    Args:
        statements: In order; several may add to one variable.
        results: Names of what is wanted, or some components.
        read: What a later part of the program reads; what these statements read is added.
    """
    read = set() if read is None else read
    kept = []
    for statement in reversed(statements):
        target = statement.target
        if target.name in results or target in results or target in read:
            kept.append(statement)
            read.update(factor for product in statement.products for factor in product.factors)
    return kept[::-1]
