"""Prints statements as C++ on GCC's vector extensions, and the prelude that they rely on.

Channel statements work on `vec`, a register of neighbouring channels; edge statements work on the
same type with neighbouring edges as lanes. The width is the processor's: 64 bytes with AVX-512, 32
with AVX, 16 otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from eqtp.kernels.codegen.program import Product, Statement, Variable

__all__ = ["EXPORT", "prelude", "sum_of_products"]

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
