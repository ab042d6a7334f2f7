"""From parts to values on a grid and back: what every kernel of the family multiplies with.

A slot's function has one field on the grid, its values, or two, its surface gradient. The trilinear
form of a product of f, g and h is a sum over points

    T = sum_p weight_p sum_couplings sign  F_a(p) G_b(p) H_c(p)

over triples of fields: one for even sums, (f, g, h); two for the curl, f_0 g_1 h - f_1 g_0 h. The
product is the derivative of T in h: synthesis of f and g, a product of values, and the transposed
synthesis of h, with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from jaxtyping import Float64
from torch import Tensor

from eqtp.kernels.gaunt_grid.config import DENSE_LIMIT
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem
from eqtp.so3.sphere_grid import (
    SphereGrid,
    fourier_factors,
    gradient_factors,
    gradient_matrices,
    legendre_factors,
    sphere_grid,
    synthesis_matrix,
)

__all__ = ["COUPLINGS", "Plan", "columns_of", "dense_matrices", "fields_of", "make_plan"]

COUPLINGS: dict[bool, tuple[tuple[tuple[int, int, int], float], ...]] = {
    False: (((0, 0, 0), 1.0),),
    True: (((0, 1, 0), 1.0), ((1, 0, 0), -1.0)),
}
"""Fields of the three slots that are multiplied, and the sign; by `SphereProductProblem.odd`."""


def fields_of(odd: bool) -> tuple[int, int, int]:
    """Number of fields of every slot."""
    return (2, 2, 1) if odd else (1, 1, 1)


class Transform(Protocol):
    """Synthesis of one slot and its transpose, on columns: [dim, N] and [fields * points, N]."""

    def synthesize(self, x: Tensor) -> Tensor:
        """Fields on the points."""
        ...

    def transpose(self, values: Tensor) -> Tensor:
        """The transposed synthesis."""
        ...


@dataclass(frozen=True)
class Dense:
    """By one matrix [fields * points, dim]."""

    matrix: Tensor

    def synthesize(self, x: Tensor) -> Tensor:
        return _matmul(self.matrix, x)

    def transpose(self, values: Tensor) -> Tensor:
        return _matmul(self.matrix.t(), values)


@dataclass(frozen=True)
class Separable:
    """Legendre by order m, then Fourier: O(L^3) for O(L^4); points are (angle, ring).

    Attributes:
        columns: For every order, the parts that have it.
        legendre: For every field and order, [rings, parts].
        fourier: For every field, [angles, orders].
    """

    columns: tuple[Tensor, ...]
    legendre: tuple[tuple[Tensor, ...], ...]
    fourier: tuple[Tensor, ...]

    def synthesize(self, x: Tensor) -> Tensor:
        parts = [x.index_select(0, columns) for columns in self.columns]
        fields = []
        for legendre, fourier in zip(self.legendre, self.fourier, strict=True):
            rows = [_matmul(table, part) for table, part in zip(legendre, parts, strict=True)]
            values = _matmul(fourier, torch.stack(rows).flatten(1))
            fields.append(values.view(-1, x.shape[1]))
        return torch.cat(fields)

    def transpose(self, values: Tensor) -> Tensor:
        num_fields, rings = len(self.fourier), self.legendre[0][0].shape[0]
        out = values.new_zeros(sum(map(len, self.columns)), values.shape[1])
        for field, legendre, fourier in zip(
            values.chunk(num_fields), self.legendre, self.fourier, strict=True
        ):
            orders = _matmul(fourier.t(), field.view(fourier.shape[0], -1))
            for columns, table, rows in zip(self.columns, legendre, orders, strict=True):
                out.index_add_(0, columns, _matmul(table.t(), rows.view(rings, -1)))
        return out


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiplies in the operands' dtype: autocast leaves products with `out=` alone."""
    return torch.mm(a, b, out=b.new_empty(a.shape[0], b.shape[1]))


@dataclass(frozen=True)
class Plan:
    """The grid of a problem and the transforms of its three slots.

    Attributes:
        transforms: One per slot.
        weights: Weights of the points, mean over the sphere, [points, 1].
    """

    transforms: tuple[Transform, Transform, Transform]
    weights: Tensor

    @property
    def num_points(self) -> int:
        """Points of the grid."""
        return self.weights.shape[0]


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # the kept tensors must serve later calls that record gradients
def make_plan(problem: SphereProductProblem, dtype: torch.dtype, device: torch.device) -> Plan:
    """The transforms in a dtype and on a device: dense on few points, separable on many."""
    dense = problem.degree <= DENSE_LIMIT
    grid = sphere_grid(problem.degree, "auto" if dense else "product")
    weights = grid.weights / grid.weights.sum()
    if grid.shape is not None and not dense:
        weights = weights.view(grid.shape).t().flatten()
    make = _dense if dense else _separable
    first, second, third = (
        make(grid, degrees, fields, dtype, device)
        for degrees, fields in zip(problem.degrees, fields_of(problem.odd), strict=True)
    )
    return Plan((first, second, third), weights[:, None].to(device, dtype))


@lru_cache(maxsize=128)
def dense_matrices(
    problem: SphereProductProblem,
) -> tuple[tuple[Float64[Tensor, "fields points dim"], ...], Float64[Tensor, " points"]]:
    """Synthesis of the three slots on the smallest grid, and the points' weights."""
    grid = sphere_grid(problem.degree)
    cpu = torch.device("cpu")
    matrices = tuple(
        _dense(grid, degrees, fields, torch.float64, cpu).matrix.view(fields, len(grid), -1)
        for degrees, fields in zip(problem.degrees, fields_of(problem.odd), strict=True)
    )
    return matrices, grid.weights / grid.weights.sum()


def columns_of(degrees: Sequence[int]) -> Tensor:
    """Where the components of some degrees are among those of all degrees."""
    return torch.cat([torch.arange(l * l, (l + 1) ** 2) for l in degrees])


def _dense(
    grid: SphereGrid,
    degrees: Sequence[int],
    fields: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Dense:
    make = synthesis_matrix if fields == 1 else gradient_matrices
    matrix = make(grid, degrees[-1])[..., columns_of(degrees)]
    return Dense(matrix.reshape(-1, matrix.shape[-1]).to(device, dtype).contiguous())


def _separable(
    grid: SphereGrid,
    degrees: Sequence[int],
    fields: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Separable:
    lmax = degrees[-1]
    if fields == 1:
        factors = [(legendre_factors(grid, lmax), fourier_factors(grid, lmax))]
    else:
        factors = gradient_factors(grid, lmax)
    orders = torch.cat([torch.arange(-l, l + 1) for l in degrees])
    all_columns = columns_of(degrees)
    columns = [(orders == m).nonzero().flatten() for m in range(-lmax, lmax + 1)]
    return Separable(
        tuple(index.to(device) for index in columns),
        tuple(
            tuple(legendre[:, all_columns[index]].to(device, dtype) for index in columns)
            for legendre, _ in factors
        ),
        tuple(fourier.to(device, dtype) for _, fourier in factors),
    )
