"""Products of 3x3 matrices as data: unfold nine numbers, multiply, fold.

    X[a, b] = sum_m x[m] B[m, a, b],   P = X Y (or X Y -+ Y X),   out[m] = sum_ab B[m, a, b] P[a, b]

Printed as C++ by `_cpu` and as Triton by `_triton`. Of the 81 numbers of B 15 are not zero.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product as pairs

from eqtp.kernels.codegen.program import Product, Program, Statement, Variable, product
from eqtp.kernels.matrix.reference import Kind
from eqtp.so3.tensor_bases import matrix_basis

__all__ = ["product_program"]


@lru_cache(maxsize=16)
def product_program(kind: Kind, transpose_x: bool, transpose_y: bool) -> Program:
    """The nine components of the result, from those of x and y."""
    entries = [*pairs(range(3), range(3))]
    statements = [
        *(_unfold("X", "x", a, b, transpose_x) for a, b in entries),
        *(_unfold("Y", "y", a, b, transpose_y) for a, b in entries),
        *(_multiply(kind, a, b) for a, b in entries),
        *(_fold(m) for m in range(9)),
    ]
    return Program(tuple(statements)).specialize({"x", "y"}, {"out"})


def _unfold(target: str, source: str, a: int, b: int, transpose: bool) -> Statement:
    row, column = (b, a) if transpose else (a, b)
    column_of = matrix_basis(1)[:, row, column].tolist()
    terms = [product(source, m, coefficient=c) for m, c in enumerate(column_of) if _is_there(c)]
    return Statement(Variable(target, (a, b)), "channel", tuple(terms))


def _multiply(kind: Kind, a: int, b: int) -> Statement:
    terms = [product("X", a, c, "Y", c, b) for c in range(3)]
    if kind != "product":
        sign = 1.0 if kind == "anticommutator" else -1.0
        terms += [product("Y", a, c, "X", c, b, coefficient=sign) for c in range(3)]
    return Statement(Variable("P", (a, b)), "channel", tuple(terms))


def _fold(m: int) -> Statement:
    terms: list[Product] = []
    for a, b in pairs(range(3), range(3)):
        c = float(matrix_basis(1)[m, a, b])
        if _is_there(c):
            terms.append(product("P", a, b, coefficient=c))
    return Statement(Variable("out", (m,)), "channel", tuple(terms))


def _is_there(number: float) -> bool:
    return abs(number) > 1e-12
