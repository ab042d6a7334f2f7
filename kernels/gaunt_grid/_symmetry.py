"""The transforms to a whole grid that take the fewest operations, by its symmetry.

    Orbits    a Lebedev rule: one sum per orbit and class
    Rings     a product rule: Legendre sums per ring y >= 0, order m and class of y, then Fourier
              sums per angle in a quarter of the circle and class of (x, z)

`eqtp.so3.grid_symmetry` says what orbits and classes are; `eqtp.kernels.gaunt_contraction._orbits`
why its kernels walk over orbits instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from torch import Tensor

from eqtp.kernels.gaunt_grid._transforms import columns_of, fields_of
from eqtp.kernels.gaunt_grid.config import ORBITS_COST
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem
from eqtp.so3.grid_symmetry import Orbit, X, Z, orbits, parity_class, symmetric_product_grid
from eqtp.so3.sphere_grid import (
    SphereGrid,
    fourier_factors,
    gradient_factors,
    legendre_factors,
    sphere_grid,
    synthesis_matrix,
)

__all__ = ["Orbits", "RingField", "Rings", "choose_grid"]


@dataclass(frozen=True, eq=False)
class Orbits:
    """The transform of one slot on a Lebedev rule.

    Attributes:
        orbits: All of them; the points of a kernel are in their order.
        classes: Class of every part.
        values: Harmonics on the orbits' first points, [orbits, dim].
        weights: Weight of a point of every orbit, mean over the sphere.
    """

    orbits: tuple[Orbit, ...]
    classes: tuple[int, ...]
    values: Tensor
    weights: tuple[float, ...]

    @property
    def num_points(self) -> int:
        """Points of the grid."""
        return sum(orbit.size for orbit in self.orbits)

    @cached_property
    def num_statements(self) -> int:
        """Multiplications and additions of a synthesis, about its length in code."""
        products = sum(orbit.has(kind) for orbit in self.orbits for kind in self.classes)
        return products + sum(orbit.size * orbit.axes.bit_count() for orbit in self.orbits)

    @classmethod
    def of(cls, grid: SphereGrid, degrees: Sequence[int]) -> Orbits:
        """The transform of harmonics of some degrees."""
        found = orbits(grid)
        first = [orbit.point for orbit in found]
        values = synthesis_matrix(grid, degrees[-1])[first][:, columns_of(degrees)]
        weights = grid.weights[first] / grid.weights.sum()
        classes = tuple(parity_class(l, m) for l in degrees for m in range(-l, l + 1))
        return cls(found, classes, values, tuple(weights.tolist()))


@dataclass(frozen=True, eq=False)
class RingField:
    """One field of a slot on a product rule.

    Attributes:
        legendre: [rings y >= 0, dim], from the pole to the equator.
        odd: Whether each part is odd under y -> -y.
        order: Order m + L of each part: its column of the Fourier factor.
        fourier: [angles, orders].
        classes: Class of every order under x -> -x and z -> -z; None for one that vanishes.
    """

    legendre: Tensor
    odd: tuple[bool, ...]
    order: tuple[int, ...]
    fourier: Tensor
    classes: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Rings:
    """The transform of one slot on a product rule with an even number of angles.

    Attributes:
        num_rings: Rings; every one but an equator has its mirror image.
        num_angles: Angles of a ring.
        fields: One, or the two of the surface gradient.
        weights: Weight of a point of every ring y >= 0, mean over the sphere.
    """

    num_rings: int
    num_angles: int
    fields: tuple[RingField, ...]
    weights: tuple[float, ...]

    @property
    def num_points(self) -> int:
        """Points of the grid."""
        return self.num_rings * self.num_angles

    @cached_property
    def angles(self) -> tuple[Orbit, ...]:
        """Orbits of a ring's angles under x -> -x and z -> -z, by the one in the first quarter."""
        return tuple(
            Orbit(index, X * (index > 0) + Z * (4 * index != self.num_angles))
            for index in range(self.num_angles // 4 + 1)
        )

    @cached_property
    def num_statements(self) -> int:
        """Multiplications and additions of a synthesis; those of rings are one piece of code."""
        quarter = sum(
            len(self.angles) * len(field.classes) + 2 * self.num_angles for field in self.fields
        )
        legendre = sum(field.legendre.numel() for field in self.fields)
        return legendre + self.num_rings * quarter

    @classmethod
    def of(cls, grid: SphereGrid, degrees: Sequence[int], num_fields: int) -> Rings:
        """The transform of harmonics of some degrees, or of their surface gradients."""
        assert grid.shape is not None
        rings, angles = grid.shape
        lmax = degrees[-1]
        if num_fields == 1:
            factors = [(legendre_factors(grid, lmax), fourier_factors(grid, lmax))]
        else:
            factors = gradient_factors(grid, lmax)
        parts = [(l, m) for l in degrees for m in range(-l, l + 1)]
        fields = []
        for number, (legendre, fourier) in enumerate(factors):
            slope, curl = num_fields == 2 and number == 0, number == 1
            fields.append(
                RingField(
                    legendre[rings // 2 :].flip(0)[:, columns_of(degrees)],
                    tuple((l - abs(m) + slope) % 2 == 1 for l, m in parts),
                    tuple(m + lmax for _, m in parts),
                    fourier,
                    tuple(_class_of_order(m, curl) for m in range(-lmax, lmax + 1)),
                )
            )
        weights = grid.weights.view(grid.shape)[rings // 2 :, 0].flip(0) / grid.weights.sum()
        return cls(rings, angles, tuple(fields), tuple(weights.tolist()))


def _class_of_order(m: int, derivative: bool) -> int | None:
    """Class of cos(m alpha) or sin(|m| alpha) under x -> -x and z -> -z, or of its derivative."""
    if derivative:
        return _class_of_order(-m, False) if m != 0 else None
    return parity_class(abs(m), m)


@lru_cache(maxsize=256)
def choose_grid(problem: SphereProductProblem) -> tuple[Orbits | Rings, ...]:
    """The transforms of the three slots, on the grid that takes fewer operations."""
    fields = fields_of(problem.odd)
    grid = symmetric_product_grid(problem.degree)
    rings = [
        Rings.of(grid, degrees, number)
        for degrees, number in zip(problem.degrees, fields, strict=True)
    ]
    if problem.odd or problem.degree > 47:  # the frames of gradients turn at a pole
        return tuple(rings)
    lebedev = sphere_grid(problem.degree, "lebedev")
    orbits = [Orbits.of(lebedev, degrees) for degrees in problem.degrees]
    costs = [
        sum(slot.num_statements + slot.num_points for slot in slots) for slots in (orbits, rings)
    ]
    return tuple(orbits if ORBITS_COST * costs[0] <= costs[1] else rings)
