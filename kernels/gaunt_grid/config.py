"""Launch choices of the products on the sphere."""

from __future__ import annotations

import math

from eqtp.kernels.gaunt_grid.problem import SphereProductProblem
from eqtp.so3.sphere_grid import sphere_grid

__all__ = [
    "CHUNK_BYTES",
    "COST",
    "CPU_MAX_STATEMENTS",
    "DENSE_LIMIT",
    "chunk_rows",
    "fourier_flops",
    "grid_flops",
]

CHUNK_BYTES = 256 << 10
"""Size of one operand's values on the grid, for the rows of a chunk of the plain-torch kernel."""

DENSE_LIMIT = 24
"""Degree of exactness up to which the plain-torch kernel multiplies by dense matrices."""


CPU_MAX_STATEMENTS = 60_000
"""Operations of three transforms that are unrolled into code."""


def chunk_rows(row_bytes: int) -> int:
    """Number of rows of a chunk of the plain-torch kernel."""
    return max(1, CHUNK_BYTES // max(row_bytes, 1))


COST = {"direct": 1.0, "grid": 1.0, "fourier": 4.0}
"""Time of a flop of each evaluation, relative to the direct one."""


def grid_flops(problem: SphereProductProblem, channels: tuple[int, int, int]) -> float:
    """Flops of a row on a grid: three transforms, each of its channels, and the products."""
    fields = (2, 2, 1) if problem.odd else (1, 1, 1)
    points = len(sphere_grid(problem.degree))
    total = 2.0 * points * max(channels) * (3 if problem.odd else 1)
    for field, width, dim in zip(fields, channels, problem.dims, strict=True):
        total += 2.0 * field * width * dim * points
    return total


def fourier_flops(problem: SphereProductProblem, channels: tuple[int, int, int]) -> float:
    """Flops of a row by fast Fourier transforms: base changes, transforms and products."""
    l1, l2, l3 = (degrees[-1] for degrees in problem.degrees)
    size = (2 * (l1 + l2) + 1) * max(l1 + l2 + l3 + 1, 2 * max(l1, l2, l3) + 1)
    total = 2.0 * size * max(channels)
    squares = (l1 + 1) ** 2, (l2 + 1) ** 2, (l1 + l2 + 1) * (l3 + 1)
    for square, width, dim in zip(squares, channels, problem.dims, strict=True):
        total += width * (4.0 * square * dim + 2.5 * size * math.log2(max(size, 2)))
    return total
