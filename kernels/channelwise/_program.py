"""The mathematics of one path, from the value to the second gradient, for both printers.

For one edge and one channel, with C the path's constants (coefficient included), the form

    T(x, y, w; g) = sum_ijk C[i, j, k] x[i] y[j] w g[k]

is linear in each operand. Its derivatives are the first order; with directions vx, vy, vw, those of
T(vx, y, w; g) + T(x, vy, w; g) + T(x, y, vw; g) are the second (names end in 2). The constants meet
y first, M[i, k] = sum_j C y[j]: where y has no channels that is done once per edge and shared by
all channels, 1.6 to 1.9 times fewer operations than three factors per constant. The gradients in x
and in w share u[i] = sum_k M[i, k] g[k].
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from eqtp.kernels.codegen.program import Kind, Product, Program, Statement, Variable, product
from eqtp.so3 import wigner_3j

__all__ = ["FIRST_ORDER", "LIKE", "SECOND_ORDER", "path_program"]

FIRST_ORDER = {"x": "grad_x", "y": "grad_y", "w": "grad_w"}
"""Gradient of T in each operand."""
SECOND_ORDER = {"g": "grad_g2", "x": "grad_x2", "y": "grad_y2", "w": "grad_w2"}
"""Gradient of T's derivative in the directions vx, vy, vw."""

LIKE = {
    **dict.fromkeys(("x", "vx", "grad_x", "grad_x2"), "x"),
    **dict.fromkeys(("y", "vy", "grad_y", "grad_y2"), "y"),
    **dict.fromkeys(("w", "vw", "grad_w", "grad_w2"), "w"),
    **dict.fromkeys(("g", "out", "grad_g2"), "g"),
    **dict.fromkeys(("h", "vh", "grad_h", "grad_h2"), "h"),
    **dict.fromkeys(("m", "vm", "grad_m", "grad_m2"), "m"),
}
"""The operand that every name is shaped like; w = h m where weights come from a radial network."""


@lru_cache(maxsize=4096)
def path_program(
    degrees: tuple[int, int, int],
    coefficient: float,
    has_weight: bool,
    operands: tuple[str, ...],
    results: tuple[str, ...],
) -> Program:
    """The formulas of a path that some results need.

    Args:
        degrees: (l1, l2, l3).
        coefficient: The path's constant.
        has_weight: Whether the path has a weight; otherwise w is 1 and vw is 0.
        operands: Those that are given; the others are zero.
        results: Those that are wanted.
    """
    formulas = _formulas(degrees, coefficient, has_weight, has_grad_x="grad_x" in results)
    return formulas.specialize(operands, results)


@lru_cache(maxsize=1024)
def _formulas(
    degrees: tuple[int, int, int], coefficient: float, has_weight: bool, *, has_grad_x: bool
) -> Program:
    """All formulas of a path; with grad_x at hand, grad_w takes its u, otherwise t.

    The components of t need not be kept.
    """
    constants = coefficient * wigner_3j(*degrees)
    terms = [
        (*index, float(constants[tuple(index)]))
        for index in constants.abs().gt(1e-14 * abs(coefficient)).nonzero().tolist()
    ]
    w = ["w"] if has_weight else []
    statements: list[Statement] = []

    def define(name: str, kind: Kind, products: Iterator[tuple[tuple[int, ...], Product]]) -> None:
        sums: dict[tuple[int, ...], list[Product]] = {}
        for index, term in products:
            sums.setdefault(index, []).append(term)
        statements.extend(
            Statement(Variable(name, index), kind, tuple(sums[index])) for index in sorted(sums)
        )

    pairs = sorted({(i, k) for i, _, k, _ in terms})
    inputs, outputs = sorted({i for i, _ in pairs}), sorted({k for _, k in pairs})
    define("M", "edge", (((i, k), product("y", j, coefficient=c)) for i, j, k, c in terms))
    define("V", "edge", (((i, k), product("vy", j, coefficient=c)) for i, j, k, c in terms))
    define("t", "channel", (((k,), product("M", i, k, "x", i)) for i, k in pairs))
    define("u", "channel", (((i,), product("M", i, k, "g", k)) for i, k in pairs))
    define(
        "s",
        "channel",
        (
            ((k,), term)
            for i, k in pairs
            for term in (product("M", i, k, "vx", i), product("V", i, k, "x", i))
        ),
    )
    define("a", "channel", (((i,), product(*w, "x", i)) for i in inputs))
    define("q", "channel", (((k,), product(*w, "g", k)) for k in outputs))
    if has_weight:
        define("p", "channel", (((k,), product("vw", "g", k)) for k in outputs))

    narrow = len(inputs) < len(outputs)  # the weight meets the operand of fewer components
    if narrow:
        define("out", "channel", (((k,), product("M", i, k, "a", i)) for i, k in pairs))
        define("r", "channel", (((i, k), product("a", i, "g", k)) for i, k in pairs))
    else:
        define("out", "channel", (((k,), product(*w, "t", k)) for k in outputs))
        define("r", "channel", (((i, k), product("q", k, "x", i)) for i, k in pairs))
    define("grad_x", "channel", (((i,), product(*w, "u", i)) for i in inputs))
    define("grad_y", "channel", (((j,), product("r", i, k, coefficient=c)) for i, j, k, c in terms))
    if has_weight:
        name, like, indices = ("u", "x", inputs) if has_grad_x else ("t", "g", outputs)
        define("grad_w", "channel", (((), product(name, i, like, i)) for i in indices))

    both = ["s"] if not has_weight else ["s", "t"]
    weights = {"s": w, "t": ["vw"]}
    define(
        "grad_g2",
        "channel",
        (((k,), product(*weights[name], name, k)) for k in outputs for name in both),
    )
    define(
        "grad_x2",
        "channel",
        (
            ((i,), term)
            for i, k in pairs
            for term in (product("V", i, k, "q", k), product("M", i, k, "p", k))
        ),
    )
    define(
        "r2",
        "channel",
        (
            ((i, k), term)
            for i, k in pairs
            for term in (product("q", k, "vx", i), product("p", k, "x", i))
        ),
    )
    define(
        "grad_y2", "channel", (((j,), product("r2", i, k, coefficient=c)) for i, j, k, c in terms)
    )
    if has_weight:
        define("grad_w2", "channel", (((), product("s", k, "g", k)) for k in outputs))
    return Program(tuple(statements))
