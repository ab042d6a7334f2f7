"""A grid as orbits of sign flips, on which transforms cost a quarter of dense ones.

The grids are symmetric under x -> -x, y -> -y and z -> -z, and every harmonic is even or odd in
each coordinate. So the harmonics fall into eight classes c (bits: odd in x, y, z), and on the orbit
of a point p with positive coordinates, whose points are numbered by their flips s,

    values      f(s p) = sum_c (-1)^popcount(s & c) S_c,    S_c = sum_(h in c) Y_h(p) x_h
    parts       x_h = sum_p A_h(p) T_c(p),                  T_c = sum_s (-1)^popcount(s & c) f(s p)

with A_h(p) = Y_h(p) times the weight of p. A harmonic is evaluated once per orbit, and the sums
over signs are three rounds of additions. Orbits of points with a coordinate 0 are smaller, and the
harmonics odd in that coordinate vanish on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from eqtp.so3.sphere_grid import SphereGrid, analysis_matrix, sphere_grid, synthesis_matrix

__all__ = ["Butterfly", "Orbits", "butterfly", "grid_orbits", "parity_class"]

_ZERO = 1e-12  # coordinates of points on a coordinate plane are below 1e-16, others above 1e-3


@dataclass(frozen=True, eq=False)
class Orbits:
    """The orbits whose points have the same coordinates different from zero.

    Attributes:
        axes: Bits of these coordinates, x = 1, y = 2, z = 4.
        harmonics: Indices l^2 + l + m of the harmonics that do not vanish, ascending.
        synthesis: Y_h at one point of every orbit, [orbits, harmonics].
        analysis: The same times the point's weight / 4 pi, [orbits, harmonics].
    """

    axes: int
    harmonics: tuple[int, ...]
    synthesis: Float64[Tensor, "orbits harmonics"]
    analysis: Float64[Tensor, "orbits harmonics"]

    @property
    def num_bits(self) -> int:
        """Number of coordinates that flip: an orbit has 2^num_bits points."""
        return self.axes.bit_count()

    def place(self, harmonic: int) -> int:
        """The class of a harmonic among the 2^num_bits that do not vanish."""
        bits = [bit for bit in (1, 2, 4) if self.axes & bit]
        return sum(1 << i for i, bit in enumerate(bits) if parity_class(harmonic) & bit)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def grid_orbits(degree: int, lmax: int) -> tuple[Orbits, ...]:
    """The smallest symmetric grid that is exact to a degree, with harmonics up to lmax."""
    grid = _symmetric_grid(degree)
    points = torch.where(grid.points.abs() < _ZERO, 0.0, grid.points)
    first = (points >= 0).all(dim=1)
    axes = ((points != 0) * torch.tensor([1, 2, 4])).sum(dim=1)
    synthesis, analysis = synthesis_matrix(grid, lmax), analysis_matrix(grid, lmax).T
    found = []
    for kind in sorted(set(axes.tolist()), reverse=True):
        rows = first & (axes == kind)
        harmonics = [h for h in range((lmax + 1) ** 2) if parity_class(h) & ~kind == 0]
        tables = (table[rows][:, harmonics] for table in (synthesis, analysis))
        found.append(Orbits(kind, tuple(harmonics), *tables))
    return tuple(found)


def _symmetric_grid(degree: int) -> SphereGrid:
    grid = sphere_grid(degree)
    if grid.kind == "lebedev":
        return grid
    return sphere_grid(degree, "product", num_angles=degree + 1 + (degree + 1) % 2)


def parity_class(harmonic: int) -> int:
    """In which coordinates Y_h is odd, as bits x = 1, y = 2, z = 4.

    Y_lm is P_l^|m|(y) cos(m alpha) or, for m < 0, sin(|m| alpha), with tan(alpha) = x / z.
    """
    l = int(harmonic**0.5)
    m = harmonic - l * l - l
    odd_x, odd_y = m < 0, (l + m) % 2 == 1
    odd_z = (m % 2 == 1) != (m < 0)
    return odd_x + 2 * odd_y + 4 * odd_z


@dataclass(frozen=True)
class Butterfly:
    """One line of a signed sum: target = left + sign right, or one of them where None is missing.

    Attributes:
        target: (round, index) of the result; the inputs are (0, index).
        left: (round, index) or None for zero.
        right: (round, index) or None for zero.
        sign: 1 or -1.
    """

    target: tuple[int, int]
    left: tuple[int, int] | None
    right: tuple[int, int] | None
    sign: int


def butterfly(num_bits: int, present: Sequence[int], wanted: Sequence[int]) -> Iterator[Butterfly]:
    """The additions of out_s = sum_c (-1)^popcount(s & c) in_c, without those of zeros.

    Args:
        num_bits: There are 2^num_bits inputs and outputs; outputs are (num_bits, index).
        present: Inputs that are not zero.
        wanted: Outputs that are asked for.
    """
    needed = [set(wanted)]
    for bit in reversed(range(num_bits)):
        needed.insert(0, needed[0] | {index ^ (1 << bit) for index in needed[0]})
    alive = set(present)
    for bit in range(num_bits):
        after = set()
        for index in sorted(needed[bit + 1]):
            low, high = index & ~(1 << bit), index | (1 << bit)
            left, right = ((bit, i) if i in alive else None for i in (low, high))
            if left is None and right is None:
                continue
            after.add(index)
            yield Butterfly((bit + 1, index), left, right, -1 if index & (1 << bit) else 1)
        alive = after
