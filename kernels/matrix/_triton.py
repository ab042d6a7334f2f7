"""Operations on 3x3 matrices as Triton kernels: one matrix per lane, nine loads per operand.

Neighbouring lanes are neighbouring channels of a row, then the next row's, so that loads are whole
cache lines for any number of channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product as combinations
from textwrap import indent
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from eqtp.kernels.codegen.program import Variable
from eqtp.kernels.codegen.triton import load_function, print_statements
from eqtp.kernels.matrix._program import product_program
from eqtp.kernels.matrix.reference import Kind

__all__ = [
    "ARGUMENTS",
    "FUNCTION",
    "LAUNCH",
    "gradient",
    "normalize",
    "product",
    "second_gradient",
    "source",
]

FUNCTION = "matrices"


class Launch(NamedTuple):
    """How the kernels are launched."""

    lanes: int
    num_warps: int
    num_stages: int


LAUNCH = Launch(lanes=128, num_warps=4, num_stages=1)
"""Matrices of a program, at most one per thread: a product holds 27 numbers in registers. Chosen
without a GPU."""

_VARIANTS = {
    f"{kind}_{int(tx)}{int(ty)}": (kind, tx, ty)
    for kind, tx, ty in combinations(get_args(Kind), (False, True), (False, True))
}

ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_VARIANTS, ("x", "y", "out")),
    "normalize": ("x", "out"),
    "gradient": ("x", "g", "out"),
    "second_gradient": ("x", "g", "v", "out"),
}
"""Tensors of each kernel; the number of matrices follows."""

_QUOTIENT = {  # in float32 Triton's plain quotient is an approximation
    torch.float32: "tl.div_rn(1.0, {})",
    torch.float64: "1.0 / ({})",
}


def product(
    x: Tensor, y: Tensor, kind: Kind, transpose_x: bool, transpose_y: bool, j: int
) -> Tensor:
    """As `reference.matrix_product`, of 3x3 matrices."""
    assert j == 1
    return _run(f"{kind}_{int(transpose_x)}{int(transpose_y)}", x, y)


def normalize(x: Tensor) -> Tensor:
    """As `_torch.normalize`."""
    return _run("normalize", x)


def gradient(x: Tensor, g: Tensor) -> Tensor:
    """As `_torch.gradient`."""
    return _run("gradient", x, g)


def second_gradient(x: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """As `_torch.second_gradient`."""
    return _run("second_gradient", x, g, v)


def _run(name: str, *operands: Tensor) -> Tensor:
    operands = tuple(operand.contiguous() for operand in operands)
    x = operands[0]
    out = torch.empty_like(x)
    channels = x.shape[1] // 9
    num = len(x) * channels
    if num == 0:
        return out
    with torch.cuda.device_of(x):
        load_function(source(name, channels, x.dtype), FUNCTION)[(-(-num // LAUNCH.lanes),)](
            *operands,
            out,
            num,
            num_warps=LAUNCH.num_warps,
            num_stages=LAUNCH.num_stages,
            enable_fp_fusion=True,
        )
    return out


@lru_cache(maxsize=256)
def source(name: str, channels: int, dtype: torch.dtype) -> str:
    """Triton source of one of `ARGUMENTS`."""
    return f"""\
@triton.jit(do_not_specialize=["num"])
def {FUNCTION}({", ".join(ARGUMENTS[name])}, num):
    item = tl.program_id(0).to(tl.int64) * {LAUNCH.lanes} + tl.arange(0, {LAUNCH.lanes})
    inside = item < num
    at = item // {channels} * {9 * channels} + item % {channels}
{indent(chr(10).join(_lines(name, channels, dtype)), "    ")}
"""


def _lines(name: str, channels: int, dtype: torch.dtype) -> Iterator[str]:
    if name in _VARIANTS:
        yield from print_statements(
            product_program(*_VARIANTS[name]),
            str,
            lambda variable: _load(variable, channels),
            (),
            set(),
        )
    else:
        for operand in ARGUMENTS[name][:-1]:
            for m in range(9):
                variable = Variable(operand, (m,))
                yield f"{variable} = {_load(variable, channels)}"
        yield "s = " + _QUOTIENT[dtype].format(_dot("x", "x") + " + 1.0")
        yield from _normalization(name)
    for m in range(9):
        yield f"tl.store(out + at + {m * channels}, out_{m}, mask=inside)"


def _normalization(name: str) -> Iterator[str]:
    """The formulas of `_torch`."""
    if name == "normalize":
        yield from (f"out_{m} = s * x_{m}" for m in range(9))
    elif name == "gradient":
        yield f"along = 2.0 * s * s * ({_dot('g', 'x')})"
        yield from (f"out_{m} = s * g_{m} - along * x_{m}" for m in range(9))
    else:
        yield "square = 2.0 * s * s"
        yield f"a = {_dot('g', 'x')}"
        yield f"b = {_dot('v', 'x')}"
        yield f"factor = 4.0 * square * s * a * b - square * ({_dot('g', 'v')})"
        yield from (
            f"out_{m} = factor * x_{m} - square * (a * v_{m} + b * g_{m})" for m in range(9)
        )


def _dot(one: str, other: str) -> str:
    return " + ".join(f"{one}_{m} * {other}_{m}" for m in range(9))


def _load(variable: Variable, channels: int) -> str:
    (m,) = variable.indices
    return f"tl.load({variable.name} + at + {m * channels}, mask=inside, other=0.0)"
