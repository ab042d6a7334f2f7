"""Clebsch-Gordan coefficients in the real basis, from exact integer arithmetic."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

_POWERS_OF_MINUS_I = (1, -1j, -1, 1j)


def wigner_3j(l1: int, l2: int, l3: int) -> Float64[Tensor, "{2*l1+1} {2*l2+1} {2*l3+1}"]:
    """Computes the invariant tensor of three degrees: the Wigner 3j tensor in the real basis.

    It is the only tensor, up to scale, with ``w[ijk] = w[abc] D1[ai] D2[bj] D3[ck]`` for every
    rotation, where ``D1, D2, D3`` are `eqtp.so3.wigner_D` of the three degrees. The scale is
    Frobenius norm 1. The sign is that of e3nn 0.6, whose rule holds for every degree: the tensor
    is ``1 / sqrt(2 l3 + 1)`` times the Clebsch-Gordan coefficients ``<l1 m1 l2 m2 | l3 m3>`` with
    the phases of Condon and Shortley, taken to the real basis by ``(-i)^l`` times the phases of
    `_complex_terms`. An exchange of two degrees multiplies it by ``(-1)^(l1 + l2 + l3)``, as for
    the ordinary 3j symbol. (e3nn 0.4.4 has other signs for some triples of odd sum.)

    Algorithm: Racah's sum is an integer, and each real entry is one integer times the square
    root of one rational number, so the only rounding is the last division and square root.
    An entry is wrong by two units in the last place at most, whatever the degrees.

    Source: Racah, Phys. Rev. 62 (1942) 438, equations 15 and 16.

    Args:
        l1: first degree.
        l2: second degree.
        l3: third degree, ``|l1 - l2| <= l3 <= l1 + l2``.

    Returns:
        The tensor, on the CPU; a copy that the caller may change.

    Raises:
        ValueError: a degree is negative, or the triangle rule is violated.

    Example:
        >>> wigner_3j(1, 1, 0)[:, :, 0].mul(3**0.5).round(decimals=12)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """
    if min(l1, l2, l3) < 0:
        raise ValueError(
            f"wigner_3j needs degrees >= 0, got (l1, l2, l3) = ({l1}, {l2}, {l3}); "
            "pass the degrees alone, parity is not part of them"
        )
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(
            f"wigner_3j needs |l1 - l2| <= l3 <= l1 + l2, got (l1, l2, l3) = ({l1}, {l2}, {l3}); "
            f"choose l3 from {abs(l1 - l2)} to {l1 + l2}"
        )
    return _wigner_3j(l1, l2, l3).clone()


@functools.cache
def _wigner_3j(l1: int, l2: int, l3: int) -> Tensor:
    """Computes `wigner_3j` once per triple of degrees; the result must not be changed."""
    racah = {
        (m1, m2): _racah_sum(l1, l2, l3, m1, m2)
        for m1 in range(-l1, l1 + 1)
        for m2 in range(-l2, l2 + 1)
        if abs(m1 + m2) <= l3
    }
    denominator = math.factorial(l1 + l2 + l3 + 1)
    for excess in (l1 + l2 - l3, l1 - l2 + l3, -l1 + l2 + l3):
        denominator *= math.factorial(excess)
    phase = _POWERS_OF_MINUS_I[(l1 + l2 - l3) % 4]

    tensor = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1, m2, m3 in _selected_orders(l1, l2, l3):
        total = 0
        for (n1, u1), (n2, u2), (n3, u3) in itertools.product(
            _complex_terms(m1), _complex_terms(m2), _complex_terms(m3)
        ):
            if n1 + n2 == n3:
                total += int((phase * u1 * u2 * u3.conjugate()).real) * racah[n1, n2]
        numerator = total * total
        for degree, order in ((l1, m1), (l2, m2), (l3, m3)):
            numerator *= math.factorial(degree + order) * math.factorial(degree - order)
        halves = (m1 != 0) + (m2 != 0) + (m3 != 0)  # each real order but 0 brings 1 / sqrt(2)
        magnitude = math.sqrt(numerator / (denominator << halves))
        tensor[l1 + m1, l2 + m2, l3 + m3] = math.copysign(magnitude, total) if total else 0.0
    return torch.from_numpy(tensor)


def _racah_sum(l1: int, l2: int, l3: int, m1: int, m2: int) -> int:
    """Returns Racah's alternating sum, in binomials: ``<l1 m1 l2 m2 | l3 m1+m2>`` up to a root."""
    return sum(
        (-1) ** k
        * math.comb(l1 + l2 - l3, k)
        * math.comb(l1 - l2 + l3, l1 - m1 - k)
        * math.comb(-l1 + l2 + l3, l2 + m2 - k)
        for k in range(min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1)
    )


def _selected_orders(l1: int, l2: int, l3: int) -> list[tuple[int, int, int]]:
    """Returns the real orders that can couple: ``|m3| = |m1| + |m2|`` or ``||m1| - |m2||``."""
    return [
        (m1, m2, m3)
        for m1 in range(-l1, l1 + 1)
        for m2 in range(-l2, l2 + 1)
        for m3 in {m1 + m2, m1 - m2, m2 - m1, -m1 - m2}
        if abs(m3) <= l3
    ]


def _complex_terms(m: int) -> list[tuple[int, complex]]:
    """Returns the real order ``m`` as (complex order, unit) pairs, without the 1/sqrt(2).

    The common factor ``(-i)^l``, which makes the coupling coefficients real, is left to the
    caller. Python multiplies the units 1, -1, i, -i exactly.
    """
    if m == 0:
        return [(0, 1 + 0j)]
    sign = -1 if m % 2 else 1
    if m > 0:
        return [(-m, 1 + 0j), (m, sign + 0j)]
    return [(m, -1j), (-m, sign * 1j)]
