"""Operations on 3x3 matrices as C++: neighbouring channels as lanes, nine registers per operand."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from itertools import product as combinations
from typing import Any, get_args

import torch
from torch import Tensor

from eqtp.kernels.codegen import cpp, memory
from eqtp.kernels.codegen.compiler import load_library
from eqtp.kernels.matrix._program import product_program
from eqtp.kernels.matrix.reference import Kind

__all__ = ["gradient", "normalize", "product", "second_gradient"]

_BODY = """
constexpr int64_t SHARE = 1 << 14;  // matrices that are worth a further thread

// body(offset of component 0, lanes) for every row and register of channels.
template <class Body>
static inline void each(int64_t rows, int64_t channels, int threads, Body body) {
    const int team = (int)std::min<int64_t>(threads, 1 + rows * channels / SHARE);
#pragma omp parallel for num_threads(team)
    for (int64_t n = 0; n < rows; ++n) {
        int64_t c = 0;
        for (; c + LANES <= channels; c += LANES)
            body(std::true_type(), n * 9 * channels + c, LANES);
        if (c < channels) body(std::false_type(), n * 9 * channels + c, (int)(channels - c));
    }
}

// Nine components.
struct Nine {
    vec at[9];
    template <bool FULL> static inline Nine read(const real* p, int64_t stride, int lanes) {
        Nine value;
        for (int m = 0; m < 9; ++m) value.at[m] = get<FULL>(p + m * stride, lanes);
        return value;
    }
    template <bool FULL> inline void write(real* p, int64_t stride, int lanes) const {
        for (int m = 0; m < 9; ++m) put<FULL>(p + m * stride, at[m], lanes);
    }
    inline vec dot(const Nine& other) const {
        vec sum = at[0] * other.at[0];
        for (int m = 1; m < 9; ++m) sum += at[m] * other.at[m];
        return sum;
    }
};

EXPORT void normalize(int64_t rows, int64_t channels, const real* x, real* out, int threads) {
    each(rows, channels, threads, [=](auto full, int64_t at, int lanes) {
        Nine row = Nine::read<full.value>(x + at, channels, lanes);
        const vec s = 1 / (row.dot(row) + 1);
        for (int m = 0; m < 9; ++m) row.at[m] *= s;
        row.write<full.value>(out + at, channels, lanes);
    });
}

EXPORT void gradient(int64_t rows, int64_t channels, const real* x, const real* g, real* out,
                     int threads) {
    each(rows, channels, threads, [=](auto full, int64_t at, int lanes) {
        const Nine row = Nine::read<full.value>(x + at, channels, lanes);
        Nine given = Nine::read<full.value>(g + at, channels, lanes);
        const vec s = 1 / (row.dot(row) + 1), along = 2 * s * s * given.dot(row);
        for (int m = 0; m < 9; ++m) given.at[m] = s * given.at[m] - along * row.at[m];
        given.write<full.value>(out + at, channels, lanes);
    });
}

EXPORT void second_gradient(int64_t rows, int64_t channels, const real* x, const real* g,
                            const real* v, real* out, int threads) {
    each(rows, channels, threads, [=](auto full, int64_t at, int lanes) {
        Nine row = Nine::read<full.value>(x + at, channels, lanes);
        const Nine given = Nine::read<full.value>(g + at, channels, lanes);
        const Nine other = Nine::read<full.value>(v + at, channels, lanes);
        const vec s = 1 / (row.dot(row) + 1), square = 2 * s * s;
        const vec a = given.dot(row), b = other.dot(row);
        const vec factor = 4 * square * s * a * b - square * given.dot(other);
        for (int m = 0; m < 9; ++m)
            row.at[m] = factor * row.at[m] - square * (a * other.at[m] + b * given.at[m]);
        row.write<full.value>(out + at, channels, lanes);
    });
}
"""

_PRODUCT = """
EXPORT void {name}(int64_t rows, int64_t channels, const real* x, const real* y, real* out,
                   int threads) {{
    each(rows, channels, threads, [=](auto full, int64_t at, int lanes) {{
{lines}
    }});
}}
"""


def product(
    x: Tensor, y: Tensor, kind: Kind, transpose_x: bool, transpose_y: bool, j: int
) -> Tensor:
    """As `reference.matrix_product`, of 3x3 matrices."""
    assert j == 1
    return _run(_name(kind, transpose_x, transpose_y), x, y)


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
    rows, dim = operands[0].shape
    out = memory.empty(operands[0], rows, dim)
    pointers = (tensor.data_ptr() for tensor in (*operands, out))
    getattr(_library(out.dtype), name)(rows, dim // 9, *pointers, torch.get_num_threads())
    return out


def _name(kind: Kind, transpose_x: bool, transpose_y: bool) -> str:
    return f"{kind}_{int(transpose_x)}{int(transpose_y)}"


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    headers = "#include <algorithm>\n#include <type_traits>\n"
    export = f"#define EXPORT {cpp.EXPORT}\n"
    variants = [*combinations(get_args(Kind), (False, True), (False, True))]
    products = [
        _PRODUCT.format(name=_name(*variant), lines="\n".join(_lines(*variant)))
        for variant in variants
    ]
    library = load_library(headers + cpp.prelude(dtype) + export + _BODY + "".join(products))
    operands = {"normalize": 1, "gradient": 2, "second_gradient": 3}
    operands |= {_name(*variant): 2 for variant in variants}
    for name, number in operands.items():
        function = getattr(library, name)
        head: list[Any] = [ctypes.c_int64, ctypes.c_int64]
        function.argtypes = [*head, *[ctypes.c_void_p] * (number + 1), ctypes.c_int]
        function.restype = None
    return library


def _lines(kind: Kind, transpose_x: bool, transpose_y: bool) -> Iterator[str]:
    """A product, every component read right before its first use."""
    program = product_program(kind, transpose_x, transpose_y)
    defined, known = program.targets, set[str]()
    for statement in program.statements:
        for factor in (factor for term in statement.products for factor in term.factors):
            if factor not in defined and str(factor) not in known:
                known.add(str(factor))
                source = f"{factor.name} + at + {factor.indices[0]} * channels"
                yield f"        const vec {factor} = get<full.value>({source}, lanes);"
        value = cpp.sum_of_products(statement, str)
        yield f"        const vec {statement.target} = {value};"
    for m in range(9):
        yield f"        put<full.value>(out + at + {m} * channels, out_{m}, lanes);"
