"""Prints a program as Triton source of straight-line code, and loads such a source.

A statement becomes a line; an operand is loaded on the line before its first use, so that values
live in registers only as long as they are needed. Edge statements become scalars and channel
statements blocks without the printer's doing: Triton takes the type from the operands.

Triton reads the source of a function that it compiles, so a source is registered in `linecache`:
tracebacks show it, nothing is written to the disk, and processes that start together share nothing.
This module imports triton only when a source is loaded.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any

from eqtp.kernels.codegen.program import Product, Program, Variable

__all__ = ["load_function", "print_statements"]

_PRELUDE = "import triton\nimport triton.language as tl\n\n\n"


def print_statements(
    program: Program,
    name: Callable[[Variable], str],
    load: Callable[[Variable], str],
    sums: Collection[str],
    known: set[str],
) -> Iterator[str]:
    """The lines of a program.

    Args:
        program: What to compute.
        name: Name of a variable in the source.
        load: Expression that reads an operand's component from memory.
        sums: Names of the results to which a statement adds where they are known already.
        known: Names that have a value; those that get one are added.
    """
    defined = program.targets
    for statement in program.statements:
        for factor in (factor for term in statement.products for factor in term.factors):
            if factor not in defined and name(factor) not in known:
                known.add(name(factor))
                yield f"{name(factor)} = {load(factor)}"
        target = name(statement.target)
        terms = [_product(term, name) for term in statement.products]
        if statement.target.name in sums:
            if target in known:
                terms.insert(0, target)
            known.add(target)
        yield f"{target} = {' + '.join(terms)}"


def _product(term: Product, name: Callable[[Variable], str]) -> str:
    constant = [] if term.coefficient == 1.0 else [repr(term.coefficient)]
    return " * ".join([*constant, *map(name, term.factors)])


@lru_cache(maxsize=4096)
def load_function(source: str, name: str) -> Any:
    """Makes the function `name` of a source, which may use `triton` and `tl`."""
    text = _PRELUDE + source
    module = f"eqtp_triton_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = f"<{module}>"
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    namespace: dict[str, Any] = {"__name__": module, "__file__": path}
    exec(compile(text, path, "exec"), namespace)
    return namespace[name]
