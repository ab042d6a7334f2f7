"""Grids of the sphere: exact, minimal, and harmonics that agree with independent ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from eqtp.so3 import gaunt, spherical_harmonics, wigner_3j
from eqtp.so3 import sphere_grid as module
from eqtp.so3.sphere_grid import (
    SphereGrid,
    analysis_matrix,
    fourier_factors,
    gradient_factors,
    gradient_matrices,
    legendre_factors,
    product_grid,
    sphere_grid,
    synthesis_matrix,
)

TOLERANCES = {
    "quadrature": 1e-13,  # sums of a few hundred terms of size one, 4e-15 measured
    "harmonics": 3e-13,  # values up to sqrt(33) of two recursions of 16 steps, 5e-14 measured
    "broken": 1e-3,  # the least error of a rule that is one node too small
}
KINDS = ("product", "lebedev")


def products(grid: SphereGrid, l1: int, l2: int, l3: int) -> Tensor:
    """Mean over the grid of three "component" harmonics of every degree up to the three."""
    first, second = synthesis_matrix(grid, l1), synthesis_matrix(grid, l2)
    return torch.einsum("kp,pi,pj->ijk", analysis_matrix(grid, l3), first, second)


def exact(l1: int, l2: int, l3: int) -> Tensor:
    """The same from Gaunt coefficients."""
    result = torch.zeros((l1 + 1) ** 2, (l2 + 1) ** 2, (l3 + 1) ** 2)
    ranges = (range(l1 + 1), range(l2 + 1), range(l3 + 1))
    for a, b, c in itertools.product(*ranges):
        block = tuple(slice(l * l, (l + 1) ** 2) for l in (a, b, c))
        result[block] = math.sqrt(4 * math.pi) * gaunt(a, b, c)
    return result


def test_sizes() -> None:
    assert [len(sphere_grid(3 * l, "product")) for l in range(1, 5)] == [8, 28, 50, 91]
    assert [len(sphere_grid(4 * l, "product")) for l in range(1, 5)] == [15, 45, 91, 153]
    degrees = (3, 5, 7, 9, 11, 13, 15, 17, 21)
    lebedev = [6, 14, 26, 38, 50, 74, 86, 110, 170]
    assert [len(sphere_grid(d, "lebedev")) for d in degrees] == lebedev
    assert [len(sphere_grid(d)) for d in degrees] == lebedev
    assert len(sphere_grid(0)) == 1
    assert sphere_grid(200).kind == "product"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l", [1, 2, 3, 4])
def test_smallest_rules_are_exact(l: int, kind: module.GridKind) -> None:
    for l3 in (l, 2 * l):
        error = products(sphere_grid(2 * l + l3, kind), l, l, l3) - exact(l, l, l3)
        assert float(error.abs().max()) < TOLERANCES["quadrature"]


@pytest.mark.parametrize("fewer", [(1, 0), (0, 1)])
@pytest.mark.parametrize("l", [1, 2, 3, 4])
def test_one_node_fewer_fails(l: int, fewer: tuple[int, int]) -> None:
    for l3 in (l, 2 * l):
        degree = 2 * l + l3
        grid = product_grid(degree // 2 + 1 - fewer[0], degree + 1 - fewer[1])
        error = products(grid, l, l, l3) - exact(l, l, l3)
        assert float(error.abs().max()) > TOLERANCES["broken"]


@pytest.mark.parametrize("kind", KINDS)
def test_degree_16(kind: module.GridKind) -> None:
    grid = sphere_grid(32, kind)
    eye = analysis_matrix(grid, 16) @ synthesis_matrix(grid, 16)
    assert float((eye - torch.eye(289)).abs().max()) < TOLERANCES["quadrature"]
    harmonics = spherical_harmonics(16, grid.points)
    error = synthesis_matrix(grid, 16) - harmonics
    assert float(error.abs().max()) < TOLERANCES["harmonics"]


def test_normalizations() -> None:
    grid = sphere_grid(8)
    assert math.isclose(float(grid.weights.sum()), 4 * math.pi)
    integral = spherical_harmonics(4, grid.points, "integral")
    torch.testing.assert_close(synthesis_matrix(grid, 4, "integral"), integral)
    eye = analysis_matrix(grid, 4, "integral") @ integral
    torch.testing.assert_close(eye, torch.eye(25))


def test_factors_of_a_product_rule() -> None:
    grid = sphere_grid(9, "product")
    legendre, fourier = legendre_factors(grid, 4), fourier_factors(grid, 4)
    orders = torch.cat([torch.arange(-l, l + 1) for l in range(5)]) + 4
    separate = legendre[:, None] * fourier[None][..., orders]
    torch.testing.assert_close(separate.flatten(0, 1), synthesis_matrix(grid, 4))
    for field, (rings, angles) in enumerate(gradient_factors(grid, 4)):
        separate = rings[:, None] * angles[None][..., orders]
        torch.testing.assert_close(separate.flatten(0, 1), gradient_matrices(grid, 4)[field])


def test_more_angles_than_needed() -> None:
    grid = sphere_grid(9, num_angles=12)
    assert grid.shape == (5, 12)
    error = products(grid, 3, 3, 3) - exact(3, 3, 3)
    assert float(error.abs().max()) < TOLERANCES["quadrature"]


def test_gradients_are_those_of_the_harmonics() -> None:
    grid = sphere_grid(12, "lebedev")  # has points at the poles
    points = grid.points.clone().requires_grad_()
    harmonics = spherical_harmonics(6, points)  # normalised: tangential
    frame = torch.stack(
        [
            torch.stack(
                [
                    grid.cos_beta * grid.alpha.sin(),
                    -grid.sin_beta,
                    grid.cos_beta * grid.alpha.cos(),
                ],
                dim=1,
            ),
            torch.stack([grid.alpha.cos(), torch.zeros_like(grid.alpha), -grid.alpha.sin()], dim=1),
        ]
    )
    gradients = gradient_matrices(grid, 6)
    for k in range(49):
        (gradient,) = torch.autograd.grad(harmonics[:, k].sum(), points, retain_graph=True)
        error = torch.einsum("fpa,pa->fp", frame, gradient) - gradients[..., k]
        assert float(error.abs().max()) < TOLERANCES["harmonics"]


@pytest.mark.parametrize("kind", KINDS)
def test_poisson_bracket_couples_the_odd_sums(kind: module.GridKind) -> None:
    """Every odd path is a multiple of w3j, and the rule of degree L1 + L2 - 1 + L3 is enough."""
    grid = sphere_grid(3 + 3 - 1 + 3, kind)
    f, g = gradient_matrices(grid, 3), gradient_matrices(grid, 3)
    bracket = f[0][:, :, None] * g[1][:, None] - f[1][:, :, None] * g[0][:, None]
    constants = torch.einsum("kp,pij->ijk", analysis_matrix(grid, 3), bracket)
    for l1, l2, l3 in itertools.product(range(4), repeat=3):
        a, b, c = (slice(l * l, (l + 1) ** 2) for l in (l1, l2, l3))
        block = constants[a, b, c]
        if (l1 + l2 + l3) % 2 == 0 or not abs(l1 - l2) <= l3 <= l1 + l2:
            assert float(block.abs().max()) < TOLERANCES["quadrature"]
            continue
        w3j = wigner_3j(l1, l2, l3)
        factor = float((block * w3j).sum())
        assert float((block - factor * w3j).abs().max()) < TOLERANCES["quadrature"] * 10
        assert abs(factor) > 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        sphere_grid(-1)
    with pytest.raises(ValueError, match="known to degree 131"):
        sphere_grid(132, "lebedev")
    with pytest.raises(ValueError, match="at least 5 rings and 10 angles"):
        sphere_grid(9, num_rings=4)
    with pytest.raises(ValueError, match="kind must be one of"):
        sphere_grid(9, "design")
    with pytest.raises(ValueError, match="only product rules"):
        legendre_factors(sphere_grid(9, "lebedev"), 3)
    with pytest.raises(ValueError, match="normalization must be"):
        synthesis_matrix(sphere_grid(9), 3, "norm")  # type: ignore[arg-type]
