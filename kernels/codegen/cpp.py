"""Prints statements as C++ on GCC's vector extensions, and the prelude that they rely on.

Channel statements work on `vec`, a register of neighbouring channels; edge statements work on the
same type with neighbouring edges as lanes. The width is the processor's: 64 bytes with AVX-512, 32
with AVX, 16 otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from eqtp.kernels.codegen.program import Product, Statement, Variable

__all__ = ["EXPORT", "MATRIX_PRODUCT", "prelude", "sum_of_products"]

EXPORT = 'extern "C" __attribute__((visibility("default")))'

_TYPES = {torch.float32: "float", torch.float64: "double"}

_PRELUDE = """\
#include <cstdint>
#include <cstring>

typedef {real} real;
#if defined(__AVX512F__)
constexpr int WIDTH = 64;
#elif defined(__AVX__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif
constexpr int LANES = WIDTH / sizeof(real);
typedef real vec __attribute__((vector_size(WIDTH)));
typedef real unaligned __attribute__((vector_size(WIDTH), aligned(sizeof(real)), may_alias));

static inline vec load(const real* p) {{ return *(const unaligned*)p; }}
static inline void store(real* p, vec value) {{ *(unaligned*)p = value; }}

// The first n lanes; the others are zero and stay in the register.
static inline vec load(const real* p, int n) {{
    vec value = {{}};
    for (int lane = 0; lane < n; ++lane) value[lane] = p[lane];
    return value;
}}
static inline void store(real* p, vec value, int n) {{
    for (int lane = 0; lane < n; ++lane) p[lane] = value[lane];
}}
template <bool FULL> static inline vec get(const real* p, int n) {{
    return FULL ? load(p) : load(p, n);
}}
template <bool FULL> static inline void put(real* p, vec value, int n) {{
    FULL ? store(p, value) : store(p, value, n);
}}
static inline real sum_lanes(vec value) {{
    real lanes[LANES], sum = 0;
    std::memcpy(lanes, &value, sizeof(vec));
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}}
"""


MATRIX_PRODUCT = """\
// c[i][j] = sum_k a[i][k] b[k][j], added to c or in its place; a[i][k] is at a + i ai + k ak.
// A block of ROWS by 2 registers stays in registers while k runs.
#define UNROLL _Pragma("GCC unroll 16")
template <int ROWS, int COLUMNS, bool FULL>
static inline void matrix_block(
    int depth, const real* a, int64_t ai, int64_t ak, const real* b, int64_t bk,
    real* c, int64_t ci, bool add, int lanes
) {
    vec sum[ROWS][COLUMNS] = {};
    for (int k = 0; k < depth; ++k) {
        vec right[COLUMNS];
UNROLL
        for (int j = 0; j < COLUMNS; ++j) right[j] = get<FULL>(b + k * bk + j * LANES, lanes);
UNROLL
        for (int i = 0; i < ROWS; ++i)
UNROLL
            for (int j = 0; j < COLUMNS; ++j) sum[i][j] += a[i * ai + k * ak] * right[j];
    }
UNROLL
    for (int i = 0; i < ROWS; ++i)
UNROLL
        for (int j = 0; j < COLUMNS; ++j) {
            real* const at = c + i * ci + j * LANES;
            put<FULL>(at, add ? get<FULL>(at, lanes) + sum[i][j] : sum[i][j], lanes);
        }
}
template <int ROWS>
static inline void matrix_rows(
    int width, int depth, const real* a, int64_t ai, int64_t ak, const real* b, int64_t bk,
    real* c, int64_t ci, bool add
) {
    int j = 0;
    for (; j + 2 * LANES <= width; j += 2 * LANES)
        matrix_block<ROWS, 2, true>(depth, a, ai, ak, b + j, bk, c + j, ci, add, LANES);
    for (; j + LANES <= width; j += LANES)
        matrix_block<ROWS, 1, true>(depth, a, ai, ak, b + j, bk, c + j, ci, add, LANES);
    if (j < width)
        matrix_block<ROWS, 1, false>(depth, a, ai, ak, b + j, bk, c + j, ci, add, width - j);
}
static void matrix_product(
    int height, int width, int depth, const real* a, int64_t ai, int64_t ak,
    const real* b, int64_t bk, real* c, int64_t ci, bool add
) {
    constexpr int ROWS = WIDTH == 64 ? 8 : 4;
    int i = 0;
    for (; i + ROWS <= height; i += ROWS)
        matrix_rows<ROWS>(width, depth, a + i * ai, ai, ak, b, bk, c + i * ci, ci, add);
    for (; i < height; ++i)
        matrix_rows<1>(width, depth, a + i * ai, ai, ak, b, bk, c + i * ci, ci, add);
}
"""


def prelude(dtype: torch.dtype) -> str:
    """Types and loads for one dtype, the head of every source."""
    return _PRELUDE.format(real=_TYPES[dtype])


def sum_of_products(statement: Statement, name: Callable[[Variable], str]) -> str:
    """The right-hand side of a statement, operands named by `name`."""
    return " + ".join(_product(term, name) for term in statement.products)


def _product(term: Product, name: Callable[[Variable], str]) -> str:
    factors: Iterable[str] = map(name, term.factors)
    if term.coefficient == 1.0:
        return " * ".join(factors)
    return " * ".join([f"(real){term.coefficient!r}", *factors])
