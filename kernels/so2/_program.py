"""The rotation of one degree and channel as sums of products, for the printers of C++ and Triton.

To the edge, y = J Z(-b) J Z(-a) G(v) x, of which only the orders up to m_max are computed; and its
transpose. Operands of an edge are cosines and sines of the multiples of a and b (`Turns`) and the
entries of G(v); those of a channel are x_n or y_i, counted from 0.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from eqtp.kernels.codegen.program import Product, Program, Statement, Variable, product
from eqtp.kernels.so2.frames import exchange, generators

__all__ = ["from_edge", "to_edge", "torques", "turned_back"]


@lru_cache(maxsize=256)
def to_edge(l: int, m_max: int, *, turned: bool = False) -> Program:
    """Statements of y_0, ..., y_(2 m_max), for the orders -m_max, ..., m_max."""
    if l == 0:
        return _copy("x", "y", turned)
    j = exchange(l)
    statements = _turned("x", "g", l) if turned else []
    statements += _turn("g" if turned else "x", "p", "a", l, 1)
    statements += _times(j, "p", "q")
    statements += _turn("q", "s", "b", l, 1)
    statements += _times(j[l - m_max : l + m_max + 1], "s", "y")
    return Program(tuple(statements)).specialize(_OPERANDS, {"y"})


@lru_cache(maxsize=256)
def from_edge(l: int, m_max: int) -> Program:
    """The transpose without G(v): statements of x_0, ..., x_2l from y."""
    if l == 0:
        return _copy("y", "x", turned=False)
    j = exchange(l)
    statements = _times(j[l - m_max : l + m_max + 1].T, "y", "s")
    statements += _turn("s", "q", "b", l, -1)
    statements += _times(j, "q", "p")
    statements += _turn("p", "x", "a", l, -1)
    return Program(tuple(statements)).specialize(_OPERANDS, {"x"})


@lru_cache(maxsize=256)
def turned_back(l: int) -> Program:
    """The transpose of G(v): statements of o = -G(v) b."""
    return Program(tuple(_turned("b", "o", l, sign=-1.0))).specialize(_OPERANDS, {"o"})


@lru_cache(maxsize=256)
def torques(l: int, *, turned: bool = False) -> Program:
    """Statements of t_k = <b, G_k x>, or <b, G_k G(v) x>, k = 0, 1, 2, of one channel."""
    statements = _turned("x", "g", l) if turned else []
    source = "g" if turned else "x"
    for k, matrix in enumerate(generators(l)):
        products = [
            product("b", row, f"u{k}", row)
            for row in range(2 * l + 1)
            if bool((matrix[row] != 0).any())
        ]
        statements += _times(matrix, source, f"u{k}")
        statements.append(Statement(Variable("t", (k,)), "channel", tuple(products)))
    return Program(tuple(statements)).specialize(_OPERANDS, {"t"})


def _copy(source: str, target: str, turned: bool) -> Program:
    """Degree 0: no rotation changes it, and its generators are zero."""
    statement = _channel(target, 0, [product(source, 0)])
    return Program(() if turned else (statement,))


_ZERO = 1e-12
_OPERANDS = {"x", "y", "b", "cos_a", "sin_a", "cos_b", "sin_b", "v"}


def _turn(source: str, target: str, angle: str, l: int, sign: int) -> list[Statement]:
    """Z(-t), or its transpose for sign -1: cosines times x_m, +-sines times x_-m."""
    statements = []
    for row in range(2 * l + 1):
        m = row - l
        products = [product(source, row, f"cos_{angle}", abs(m))]
        if m == 0 and angle == "a":
            products = [product(source, row)]  # the cosine of 0 times a is one
        if m != 0:
            factor = float(sign if m > 0 else -sign)
            other = product(source, 2 * l - row, f"sin_{angle}", abs(m), coefficient=factor)
            products.append(other)
        statements.append(_channel(target, row, products))
    return statements


def _times(matrix: Tensor, source: str, target: str) -> list[Statement]:
    """A constant matrix times a vector."""
    return [
        _channel(
            target,
            row,
            [
                product(source, column, coefficient=value)
                for column, value in enumerate(values.tolist())
                if abs(value) > _ZERO
            ],
        )
        for row, values in enumerate(matrix)
    ]


def _turned(source: str, target: str, l: int, sign: float = 1.0) -> list[Statement]:
    """G(v) times a vector, or its transpose -G(v)."""
    rows: list[list[Product]] = [[] for _ in range(2 * l + 1)]
    for k, row, column in (generators(l).abs() > _ZERO).nonzero().tolist():
        constant = sign * float(generators(l)[k, row, column])
        rows[row].append(product(source, column, "v", k, coefficient=constant))
    return [_channel(target, row, products) for row, products in enumerate(rows)]


def _channel(target: str, row: int, products: list[Product]) -> Statement:
    return Statement(Variable(target, (row,)), "channel", tuple(products))
