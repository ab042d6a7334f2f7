"""What the evaluations of a product of functions cost: the model behind `evaluation="auto"`."""

from __future__ import annotations

import math

from eqtp.kernels.gaunt_grid._symmetry import choose_grid
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["COST_NS", "fourier_flops", "grid_flops"]

COST_NS = {"direct": 0.04, "direct, equal channels": 0.013, "grid": 0.03, "fourier": 0.2}
"""Nanoseconds per flop of each evaluation, as counted here and in `eqtp.nn.explanation`.

Measured with 1000 rows of 64 channels, float32, forward, CPU us per row on one thread of an AMD
EPYC (Zen 4); "equal channels" are "uuu" and "uuw", whose flops are counted densely:

    L                       1     2     3     4      6
    uuu   direct          2.0   3.1   7.4    23     98
          grid            1.7   2.9   5.0   7.9     15
    uvu   direct          1.6   2.4   6.2    14     42
          grid            1.6   2.5   4.8   5.8     12

The crossover is at L = 2 to 3. There was no GPU to measure on; the same model is used there."""


def grid_flops(problem: SphereProductProblem, channels: tuple[int, int, int]) -> float:
    """Flops of a row on a grid: three transforms by reflection classes, and the products."""
    slots = choose_grid(problem)
    total = 2.0 * slots[0].num_points * max(channels) * (3 if problem.odd else 1)
    for slot, width in zip(slots, channels, strict=True):
        total += 2.0 * width * slot.num_statements
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
