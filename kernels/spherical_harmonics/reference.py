"""The definition of the real spherical harmonics, by Legendre functions."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.so3.solid_harmonics import Normalization, pole_value


def spherical_harmonics(
    lmax: int,
    vec: Float[Tensor, "*batch 3"],
    normalization: Normalization = "component",
    normalize: bool = True,
) -> Float[Tensor, "*batch {(lmax+1)**2}"]:
    """Computes the harmonics from their definition; for tests, slow.

    ``Y_lm = N_l sqrt(2 (l-|m|)! / (l+|m|)!) P_l^|m|(y, r) T_m`` (without the 2 for m = 0), with
    ``T_m = Re (z + i x)^m`` for m >= 0, ``T_m = Im (z + i x)^|m|`` for m < 0, and the Legendre
    functions without their sine factor and the phase (-1)^m, made homogeneous:
    ``P_m^m = (2m-1)!!`` and ``(l-m) P_l^m = (2l-1) y P_(l-1)^m - (l+m-1) r^2 P_(l-2)^m``.
    ``N_l`` is sqrt(2l+1), 1 or sqrt((2l+1) / 4 pi): "component", "norm", "integral".
    """
    if normalize:
        zero = (vec == 0).all(dim=-1, keepdim=True)
        vec = torch.where(zero, 0.0, vec / torch.where(zero, 1.0, vec).norm(dim=-1, keepdim=True))
    x, y, z = vec.unbind(-1)
    r_squared = vec.square().sum(-1)
    columns = [torch.zeros_like(x)] * (lmax + 1) ** 2
    cosine, sine = torch.ones_like(x), torch.zeros_like(x)  # T_m and T_-m
    for m in range(lmax + 1):
        before = torch.zeros_like(x)
        legendre = torch.full_like(x, float(math.prod(range(1, 2 * m, 2))))
        for l in range(m, lmax + 1):
            ratio = math.factorial(l - m) / math.factorial(l + m) * (2 if m else 1)
            scaled = pole_value(l, normalization) * math.sqrt(ratio) * legendre
            columns[l * l + l - m] = scaled * sine  # for m = 0 the next line takes its place
            columns[l * l + l + m] = scaled * cosine
            after = (2 * l + 1) * y * legendre - (l + m) * r_squared * before
            before, legendre = legendre, after / (l + 1 - m)
        cosine, sine = z * cosine - x * sine, z * sine + x * cosine
    return torch.stack(columns, dim=-1)
