"""Definition of the product of functions on the sphere by Fourier series: a direct convolution.

    C(u, v) = sum_(u', v') F(u', v') G(u - u', v - v'),    out[k] = Re sum_(u, v) C(u, v) Z_k(u, v)

on the quarter u, v >= 0 that the symmetries leave; `_constants` has the series of the harmonics.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from eqtp.kernels.gaunt_fourier._constants import to_harmonics
from eqtp.kernels.gaunt_fourier._series import full_series, half_series
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["fourier_product"]


def fourier_product(x1: Tensor, x2: Tensor, problem: SphereProductProblem) -> Tensor:
    """The formula above; arguments as in `op.fourier_product`."""
    l1, l2, l3 = (degrees[-1] for degrees in problem.degrees)
    first = full_series(half_series(x1, problem.degrees1))
    second = full_series(half_series(x2, problem.degrees2))
    channels = max(x1.shape[2], x2.shape[2])
    # u = 0 ... l1 + l2 and v = 0 ... l3; what lies beyond is not read
    out = first.new_zeros(x1.shape[0], channels, l1 + l2 + 1, l3 + 1)
    for u, v in itertools.product(range(-l1, l1 + 1), range(-l1, l1 + 1)):
        low_u, low_v = max(-l2, -u), max(-l2, -v)
        high_v = min(l2, l3 - v)
        if low_u > l2 or low_v > high_v:
            continue
        shifted = second[..., l2 + low_u :, l2 + low_v : l2 + high_v + 1]
        at = (..., slice(u + low_u, u + l2 + 1), slice(v + low_v, v + high_v + 1))
        out[at] = out[at] + first[..., l1 + u, l1 + v, None, None] * shifted
    table = to_harmonics(problem.degrees3, l1 + l2).to(out)
    return torch.einsum("zcuv,uvk->zkc", out, table).real
