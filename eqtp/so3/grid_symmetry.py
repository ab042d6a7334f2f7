"""Grids and harmonics by their symmetry under x -> -x, y -> -y and z -> -z.

Lebedev rules, and product rules with an even number of angles, go into themselves under the three
reflections, and a harmonic is even or odd under each. Sets of coordinates, and the classes of
functions that are odd in such a set, are numbers of three bits: x = 1, y = 2, z = 4. On the orbit
of a point p whose coordinates are not negative, with its points numbered by their flips s,

    values      f(s p) = sum_c (-1)^popcount(s & c) S_c,    S_c = sum_(h in c) Y_h(p) x_h
    parts       x_h = sum_p A_h(p) T_c(p),                  T_c = sum_s (-1)^popcount(s & c) f(s p)

with A_h(p) = Y_h(p) times the weight of p. A harmonic is evaluated once per orbit, and the signed
sums are Walsh-Hadamard transforms: additions. That leaves an eighth of the multiplications of a
dense transform. Orbits of points with a coordinate 0 are smaller, and the functions odd in that
coordinate vanish on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eqtp.so3.sphere_grid import SphereGrid, sphere_grid

__all__ = ["Orbit", "X", "Z", "class_number", "orbits", "parity_class", "symmetric_product_grid"]

X, Y, Z = 1, 2, 4
_ON_PLANE = 1e-9  # a coordinate that small is zero; others are above 1e-3 to degree 131


@dataclass(frozen=True)
class Orbit:
    """Points that go into each other.

    Attributes:
        point: Number of the one in the grid whose coordinates are not negative.
        axes: Its coordinates that are not zero.
    """

    point: int
    axes: int

    @property
    def size(self) -> int:
        """Number of points."""
        return 1 << self.axes.bit_count()

    def has(self, kind: int) -> bool:
        """Whether functions of a class need not vanish on it."""
        return kind & ~self.axes == 0


def orbits(grid: SphereGrid) -> tuple[Orbit, ...]:
    """The orbits of a symmetric grid, in the order of their first points."""
    first = (grid.points > -_ON_PLANE).all(dim=1)
    axes = ((grid.points > _ON_PLANE) * torch.tensor([X, Y, Z])).sum(dim=1)
    return tuple(Orbit(point, int(axes[point])) for point in first.nonzero().flatten().tolist())


def parity_class(l: int, m: int) -> int:
    """The coordinates in which Y_lm is odd.

    Y_lm is P_l^|m|(y) cos(m alpha) or, for m < 0, sin(|m| alpha), with tan(alpha) = x / z.
    """
    odd_x, odd_y = m < 0, (l + m) % 2 == 1
    odd_z = (m % 2 == 1) != (m < 0)
    return X * odd_x + Y * odd_y + Z * odd_z


def class_number(kind: int, axes: int) -> int:
    """Number of a class among those that do not vanish where only the coordinates `axes` do not."""
    bits = [bit for bit in (X, Y, Z) if axes & bit]
    return sum(1 << i for i, bit in enumerate(bits) if kind & bit)


def symmetric_product_grid(degree: int) -> SphereGrid:
    """The smallest product rule that is exact to a degree and symmetric."""
    return sphere_grid(degree, "product", num_angles=degree + 1 + (degree + 1) % 2)
