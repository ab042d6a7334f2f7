"""A grid by kinds of orbits: those on which the same harmonics vanish share their code.

Orbits and classes are those of `eqtp.so3.grid_symmetry`. The kernels here take a node through the
grid orbit by orbit, in a loop for every kind whose constants are read from a table: the values on
an orbit are all that is alive, and the code does not grow with the grid. The kernels of
`eqtp.kernels.gaunt_grid` (`_symmetry`) transform to the whole grid at once, several functions one
after the other, which lets them separate a product rule and puts the constants into the code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from eqtp.so3.grid_symmetry import Orbit, class_number, orbits, parity_class, symmetric_product_grid
from eqtp.so3.sphere_grid import analysis_matrix, sphere_grid, synthesis_matrix

__all__ = ["Butterfly", "Orbits", "butterfly", "grid_orbits"]


@dataclass(frozen=True, eq=False)
class Orbits:
    """The orbits whose points have the same coordinates different from zero.

    Attributes:
        axes: These coordinates.
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
        return class_number(_class(harmonic), self.axes)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def grid_orbits(degree: int, lmax: int) -> tuple[Orbits, ...]:
    """The smallest symmetric grid that is exact to a degree, with harmonics up to lmax."""
    grid = sphere_grid(degree)
    if grid.kind == "product":
        grid = symmetric_product_grid(degree)
    synthesis, analysis = synthesis_matrix(grid, lmax), analysis_matrix(grid, lmax).T
    by_axes: dict[int, list[Orbit]] = {}
    for orbit in orbits(grid):
        by_axes.setdefault(orbit.axes, []).append(orbit)
    found = []
    for axes, alike in sorted(by_axes.items(), reverse=True):
        rows = [orbit.point for orbit in alike]
        harmonics = [h for h in range((lmax + 1) ** 2) if alike[0].has(_class(h))]
        tables = (table[rows][:, harmonics] for table in (synthesis, analysis))
        found.append(Orbits(axes, tuple(harmonics), *tables))
    return tuple(found)


def _class(harmonic: int) -> int:
    """The class of the harmonic number l^2 + l + m."""
    l = math.isqrt(harmonic)
    return parity_class(l, harmonic - l * l - l)


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
