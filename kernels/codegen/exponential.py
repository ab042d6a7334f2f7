"""The exponential of a register of numbers, in C++ on GCC's vector extensions."""

from __future__ import annotations

import math

import torch

__all__ = ["exponential"]

_DEGREE = {torch.float32: 7, torch.float64: 13}  # of the series for |x| <= ln(2) / 2
_NUMBERS: dict[torch.dtype, dict[str, object]] = {
    torch.float32: {
        "integer": "int32_t",
        "mantissa": 23,
        "bias": 127,
        "limit": 80.0,
        "high": "0.693359375f",
        "low": "-2.12194440e-4f",
    },
    torch.float64: {
        "integer": "int64_t",
        "mantissa": 52,
        "bias": 1023,
        "limit": 700.0,
        "high": "6.93145751953125e-1",
        "low": "1.42860682030941723212e-6",
    },
}

_SOURCE = """
typedef {integer} integers __attribute__((vector_size(WIDTH)));

// exp(x) for |x| <= {limit}, cut off beyond: 2^n times the Taylor series of the rest.
static inline vec exponential(vec x) {{
    const real limit = {limit}, magic = 1.5 * ({integer}(1) << {mantissa});
    x = x < -limit ? vec{{}} - limit : x;
    x = x > limit ? vec{{}} + limit : x;
    vec shifted = x * (real)1.44269504088896340736 + magic;
    vec n = shifted - magic;
    vec rest = x - n * {high} - n * {low};
    vec sum = vec{{}} + {last};
{horner}
    integers power = ((integers)shifted + {bias}) << {mantissa};
    return sum * (vec)power;
}}
"""


def exponential(dtype: torch.dtype) -> str:
    """C++ source of the function, which follows `cpp.prelude` of the same dtype."""
    *lower, last = [f"(real){1 / math.factorial(k)!r}" for k in range(_DEGREE[dtype] + 1)]
    horner = "\n".join(f"    sum = sum * rest + {coefficient};" for coefficient in lower[::-1])
    return _SOURCE.format(**_NUMBERS[dtype], last=last, horner=horner)
