"""The harmonics as Triton kernels: one vector per lane, the recursion unrolled term by term.

As in `_cpu`, the gradient and the derivative along a direction need the harmonics alone, which each
kernel computes anew: only two degrees are alive at a time, and values are never stored. High
degrees have kernels of their own, because the time to compile grows with the square of the number
of loads and stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from textwrap import indent
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eqtp.kernels.codegen.program import Product, Program, Statement, Variable
from eqtp.kernels.codegen.triton import load_function, print_statements
from eqtp.kernels.codegen.triton_device import TRITON_NAME
from eqtp.so3.solid_harmonics import Normalization, pole_value, recursion_step

__all__ = [
    "ARGUMENTS",
    "FUNCTION",
    "LAUNCH",
    "MAX_DEGREE",
    "directional",
    "forward",
    "gradient",
    "sources",
]

FUNCTION = "harmonics"


class Launch(NamedTuple):
    """How the kernels are launched."""

    lanes: int
    num_warps: int
    num_stages: int


LAUNCH = Launch(lanes=128, num_warps=4, num_stages=1)
"""Vectors of a program, at most one per thread: no value takes two registers of its size. Chosen
without a GPU."""

MAX_DEGREE = 11
"""Highest degree whose recursion is unrolled."""

MAX_COLUMNS = 64
"""Columns that one kernel loads or stores. The gradient takes 0.7 s of CPU time to compile for
degrees to 5, 2.8 s to 7, 11 s to 9, 38 s to 11 in one kernel (Triton 3.7.1, Zen 4)."""

What = Literal["forward", "gradient", "directional"]

ARGUMENTS: dict[What, tuple[str, ...]] = {
    "forward": ("vectors", "values"),
    "gradient": ("vectors", "given", "grad"),
    "directional": ("vectors", "directions", "values"),
}
"""Tensors of each kernel; the number of vectors follows."""


_INVERSE = {  # in float32 Triton's plain root and quotient are approximations
    torch.float32: "tl.div_rn(1.0, tl.sqrt_rn(squared))",
    torch.float64: "1.0 / tl.sqrt(squared)",
}


def forward(lmax: int, vec: Tensor, normalization: Normalization, normalize: bool) -> Tensor:
    """The harmonics of vectors [N, 3] as rows."""
    values = vec.new_empty(vec.shape[0], (lmax + 1) ** 2)
    _run("forward", lmax, normalization, normalize, vec, values)
    return values


def gradient(
    lmax: int, vec: Tensor, g: Tensor, normalization: Normalization, normalize: bool
) -> Tensor:
    """Gradient of sum(g * harmonics) in the vectors."""
    grad = torch.empty_like(vec)
    _run("gradient", lmax, normalization, normalize, vec, g, grad)
    return grad


def directional(
    lmax: int, vec: Tensor, direction: Tensor, normalization: Normalization, normalize: bool
) -> Tensor:
    """Derivative of the harmonics along a direction for each vector."""
    values = vec.new_empty(vec.shape[0], (lmax + 1) ** 2)
    _run("directional", lmax, normalization, normalize, vec, direction, values)
    return values


def _run(
    what: What, lmax: int, normalization: Normalization, normalize: bool, *tensors: Tensor
) -> None:
    vec = tensors[0]
    if len(vec) == 0:
        return
    with torch.cuda.device_of(vec):
        for text in sources(what, lmax, normalization, normalize, vec.dtype):
            load_function(text, FUNCTION)[(-(-len(vec) // LAUNCH.lanes),)](
                *tensors,
                len(vec),
                num_warps=LAUNCH.num_warps,
                num_stages=LAUNCH.num_stages,
                enable_fp_fusion=True,
            )


@lru_cache(maxsize=256)
def sources(
    what: What, lmax: int, normalization: Normalization, normalize: bool, dtype: torch.dtype
) -> tuple[str, ...]:
    """Triton source of the kernels, for neighbouring degrees each, in the order of their runs."""
    return tuple(
        f"""\
@triton.jit(do_not_specialize=["num"])
def {FUNCTION}({", ".join(ARGUMENTS[what])}, num):
{indent(chr(10).join(_lines(what, degrees, lmax, normalization, normalize, dtype)), "    ")}
"""
        for degrees in _parts(lmax)
    )


def _parts(lmax: int) -> list[range]:
    """The degrees in groups of at most `MAX_COLUMNS` columns."""
    parts = [range(1)]
    for l in range(1, lmax + 1):
        start = parts[-1].start
        if (l + 1) ** 2 - start**2 <= MAX_COLUMNS:
            parts[-1] = range(start, l + 1)
        else:
            parts.append(range(l, l + 1))
    return parts


def _lines(
    what: What,
    degrees: range,
    lmax: int,
    normalization: Normalization,
    normalize: bool,
    dtype: torch.dtype,
) -> Iterator[str]:
    yield f"row = tl.program_id(0).to(tl.int64) * {LAUNCH.lanes} + tl.arange(0, {LAUNCH.lanes})"
    yield "inside = row < num"
    yield from _vector("vectors", "unit")
    if normalize:
        yield "squared = unit_0 * unit_0 + unit_1 * unit_1 + unit_2 * unit_2"
        # v / |v| and 1 / |v| are both 0 where |v|^2 underflows.
        yield f"vanishing = squared < {torch.finfo(dtype).tiny!r}"
        yield "squared = tl.where(vanishing, 1.0, squared)"
        yield f"inverse = tl.where(vanishing, 0.0, {_INVERSE[dtype]})"
        yield from (f"unit_{a} = unit_{a} * inverse" for a in range(3))
    if what == "directional":
        yield from _vector("directions", "along")
        if normalize:
            yield from _project("along")

    columns = (lmax + 1) ** 2
    zeros = f"tl.zeros([{LAUNCH.lanes}], {TRITON_NAME[dtype]})"
    constant = f"tl.full([{LAUNCH.lanes}], {pole_value(0, normalization)!r}, {TRITON_NAME[dtype]})"
    known = {f"{name}_{a}" for name in ("unit", "along", "grad") for a in range(3)} | {"Y_0"}
    yield f"Y_0 = {constant}"
    if what == "gradient":
        yield from (f"grad_{a} = {zeros}" for a in range(3))
    elif 0 in degrees:
        yield _store("values", columns, 0, "Y_0" if what == "forward" else zeros)
    stored = {"forward": "Y", "directional": "D"}.get(what)
    for statement in _statements(what, degrees, normalization):
        yield from print_statements(
            Program((statement,)),
            str,
            lambda variable: _load("given", columns, variable.indices[0]),
            {"grad"},
            known,
        )
        name, (index,) = statement.target
        known.add(str(statement.target))
        if name == stored and index >= degrees.start**2:
            yield _store("values", columns, index, str(statement.target))
    if what == "gradient":
        if normalize:
            yield from _project("grad")
        for a in range(3):
            before = "" if 0 in degrees else f"{_load('grad', 3, a)} + "
            yield _store("grad", 3, a, f"{before}grad_{a}")


def _statements(what: What, degrees: range, normalization: Normalization) -> Iterator[Statement]:
    """The recursion, and what comes of it for some degrees."""
    for l in range(1, degrees.stop):
        step = recursion_step(l, normalization)
        terms = [
            ((l - 1) ** 2 + low, axis, l**2 + high, float(step[low, axis, high]))
            for low, axis, high in step.abs().gt(1e-14).nonzero().tolist()
        ]
        if l in degrees and what == "directional":
            yield from _sums(
                "D", ((high, l * c, "Y", low, "along", a) for low, a, high, c in terms)
            )
        if l in degrees and what == "gradient":
            yield from _sums(
                "grad", ((a, l * c, "Y", low, "given", high) for low, a, high, c in terms)
            )
        if l + 1 < degrees.stop or what == "forward":
            yield from _sums("Y", ((high, c, "Y", low, "unit", a) for low, a, high, c in terms))


def _sums(name: str, terms: Iterator[tuple[int, float, str, int, str, int]]) -> Iterator[Statement]:
    """Statements name_i = sum of products of two factors, from (i, constant, factors)."""
    sums: dict[int, list[Product]] = {}
    for index, constant, one, i, other, j in terms:
        factors = (Variable(one, (i,)), Variable(other, (j,)))
        sums.setdefault(index, []).append(Product(factors, constant))
    for index in sorted(sums):
        yield Statement(Variable(name, (index,)), "edge", tuple(sums[index]))


def _vector(tensor: str, name: str) -> Iterator[str]:
    yield from (f"{name}_{a} = {_load(tensor, 3, a)}" for a in range(3))


def _project(name: str) -> Iterator[str]:
    """The derivative of v / |v| along a vector, which is its own transpose."""
    products = " + ".join(f"unit_{a} * {name}_{a}" for a in range(3))
    yield f"radial = {products}"
    yield from (f"{name}_{a} = inverse * ({name}_{a} - unit_{a} * radial)" for a in range(3))


def _load(tensor: str, columns: int, column: int) -> str:
    return f"tl.load({tensor} + row * {columns} + {column}, mask=inside, other=0.0)"


def _store(tensor: str, columns: int, column: int, value: str) -> str:
    return f"tl.store({tensor} + row * {columns} + {column}, {value}, mask=inside)"
