"""Harmonics as Fourier series on the torus, and Fourier series projected onto harmonics.

The angle beta is continued through the poles to [0, 2 pi), where a harmonic of order m is
A_lm(beta) cos(m alpha) or A_lm(beta) sin(m alpha) with A_lm a trigonometric polynomial of degree l,
even in beta for even m and odd for odd m. A real function on the sphere therefore has

    F(-u, -v) = conj F(u, v)    and    F(-u, v) = (-1)^v F(u, v),

a quarter of the coefficients, u >= 0 and v >= 0, says it all. Every constant is exact: the series
of A_lm by a discrete transform of its values, the projections by the integrals of exp(i s beta)
sin(beta) from 0 to pi in closed form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex128
from torch import Tensor

from eqtp.compiling import constant_when_compiled
from eqtp.so3.sphere_grid import polar_functions

__all__ = ["from_harmonics", "to_harmonics"]


def _orders(degrees: Sequence[int]) -> list[tuple[int, int]]:
    """Column in all degrees, and order, of every component."""
    return [(l * l + l + m, m) for l in degrees for m in range(-l, l + 1)]


def _series(lmax: int) -> Complex128[Tensor, "{2*lmax+1} {(lmax+1)**2}"]:
    """Fourier coefficients of A_lm for u = -lmax ... lmax."""
    size = 2 * lmax + 1
    beta = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    values = polar_functions(lmax, beta.cos(), beta.sin())
    series: Tensor = torch.fft.fftshift(torch.fft.fft(values, dim=0, norm="forward"), dim=0)
    return series


@constant_when_compiled
def from_harmonics(degrees: tuple[int, ...]) -> Complex128[Tensor, "dim u v"]:
    """F(u, v) for u, v = 0 ... L of every "component" harmonic of some degrees."""
    return _from_harmonics(degrees)


@functools.cache
@torch.inference_mode(False)
def _from_harmonics(degrees: tuple[int, ...]) -> Tensor:
    lmax = degrees[-1]
    series = _series(lmax)[lmax:]
    table = torch.zeros(len(_orders(degrees)), lmax + 1, lmax + 1, dtype=torch.complex128)
    for row, (column, m) in enumerate(_orders(degrees)):
        phase = 1.0 if m == 0 else (0.5 if m > 0 else -0.5j)
        table[row, :, abs(m)] = phase * series[:, column]
    return table


@constant_when_compiled
def to_harmonics(degrees: tuple[int, ...], highest: int) -> Complex128[Tensor, "u v dim"]:
    """Z(u, v) for u = 0 ... highest: a function's parts are Re sum_uv F(u, v) Z(u, v).

    The mean over the sphere of harmonic times exp(i (u beta + v alpha)), folded onto u, v >= 0.
    """
    return _to_harmonics(degrees, highest)


@functools.cache
@torch.inference_mode(False)
def _to_harmonics(degrees: tuple[int, ...], highest: int) -> Tensor:
    lmax = degrees[-1]
    u = torch.arange(-highest, highest + 1)
    degree = torch.arange(-lmax, lmax + 1)
    integrals = _half_wave(u[:, None] + degree)  # [u, u'] of exp(i (u + u') beta) sin(beta)
    polar = integrals @ _series(lmax)
    table = torch.zeros(highest + 1, lmax + 1, len(_orders(degrees)), dtype=torch.complex128)
    for row, (column, m) in enumerate(_orders(degrees)):
        sign = (-1) ** m
        positive, negative = polar[highest:, column], polar[: highest + 1, column].flip(0)
        folded = positive + sign * negative
        folded[0] = positive[0]
        phase = 2 * math.pi if m == 0 else (2 * math.pi if m > 0 else 2j * math.pi)
        table[:, abs(m), row] = phase / (4 * math.pi) * folded
    return table


def _half_wave(s: Tensor) -> Tensor:
    """The integral of exp(i s beta) sin(beta) over beta from 0 to pi."""
    even = torch.where(s % 2 == 0, 2.0 / (1.0 - s.double() ** 2), 0.0)
    odd = torch.where(s.abs() == 1, s.double() * (math.pi / 2), 0.0)
    return torch.complex(torch.where(s.abs() == 1, 0.0, even), odd)
