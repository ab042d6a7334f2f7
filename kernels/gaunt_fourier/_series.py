"""Functions on the sphere as Fourier series on the torus."""

from __future__ import annotations

import torch
from torch import Tensor

from eqtp.kernels.gaunt_fourier._constants import from_harmonics

__all__ = ["both_signs_of_u", "full_series", "half_series"]


def half_series(x: Tensor, degrees: tuple[int, ...]) -> Tensor:
    """F(u, v) for u, v >= 0, [rows, channels, L + 1, L + 1], of parts [rows, dim, channels]."""
    table = torch.view_as_real(from_harmonics(degrees)).to(x)
    series = x.transpose(1, 2) @ table.flatten(1)
    return torch.view_as_complex(series.unflatten(-1, table.shape[1:]))


def both_signs_of_u(half: Tensor) -> Tensor:
    """F(u, v) for u = -L ... L and v >= 0, by F(-u, v) = (-1)^v F(u, v)."""
    signs = half.real.new_ones(half.shape[-1])
    signs[1::2] = -1
    return torch.cat([half[..., 1:, :].flip(-2) * signs, half], dim=-2)


def full_series(half: Tensor) -> Tensor:
    """F(u, v) for u, v = -L ... L, by F(-u, -v) = conj F(u, v)."""
    right = both_signs_of_u(half)
    left = right[..., 1:].flip(-1, -2).conj()
    return torch.cat([left, right], dim=-1)
