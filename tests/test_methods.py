"""Masks and factors of the methods, against integrals over the sphere and matrix products."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from eqtp.methods import METHODS, get_method
from eqtp.so3 import spherical_harmonics, wigner_3j

# float64 integrals of degree <= 12 polynomials, of size ~ 1 to 100
TOLERANCES = {"integral": 1e-12}
TRIANGLES = [
    (l1, l2, l3)
    for l1, l2 in itertools.product(range(5), repeat=2)
    for l3 in range(abs(l1 - l2), l1 + l2 + 1)
]


@pytest.fixture(scope="module")
def sphere() -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights that integrate polynomials of degree 24, weights of sum 1."""
    height, weight = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(13))
    angle = torch.arange(26, dtype=torch.float64) * (2 * math.pi / 26)
    radius = (1 - height**2).sqrt()
    points = torch.stack(
        [
            radius[:, None] * angle.sin(),
            height[:, None].expand(-1, 26),
            radius[:, None] * angle.cos(),
        ],
        dim=-1,
    )
    return points.reshape(-1, 3), (weight / 52)[:, None].expand(-1, 26).reshape(-1)


def test_cg_and_so2_have_every_triangle_with_factor_one() -> None:
    for method in map(get_method, ("cg", "so2")):
        assert method.weight_rank == "full"
        for l1, l2, l3 in itertools.product(range(4), range(4), range(8)):
            assert method.has_path(l1, l2, l3) == (abs(l1 - l2) <= l3 <= l1 + l2)
        assert all(method.factor(*triangle) == 1.0 for triangle in TRIANGLES)
    with pytest.raises(ValueError, match=r"method 'cg' has no path \(1, 1, 3\)"):
        get_method("cg").factor(1, 1, 3)


@pytest.mark.parametrize("name", ["gaunt", "gaunt_full"])
def test_gaunt_is_the_integral_over_the_sphere(
    name: str, sphere: tuple[torch.Tensor, torch.Tensor]
) -> None:
    method = get_method(name)
    points, weights = sphere
    harmonics = spherical_harmonics(8, points)
    gradients = torch.autograd.functional.jacobian(
        lambda r: spherical_harmonics(4, r).sum(0), points
    ).movedim(0, -1)  # [points, 3, harmonics]: of functions that are constant along the radius
    for l1, l2, l3 in TRIANGLES:
        parts = [slice(degree**2, (degree + 1) ** 2) for degree in (l1, l2, l3)]
        even = (l1 + l2 + l3) % 2 == 0
        if not even and (name == "gaunt" or 0 in (l1, l2, l3)):
            assert not method.has_path(l1, l2, l3)
            continue
        first, second, third = (harmonics[:, part] for part in parts)
        if even:
            product = first[:, :, None] * second[:, None, :]
        else:
            left, right = (gradients[:, :, part] for part in parts[:2])
            curl = torch.linalg.cross(left[..., None], right[:, :, None], dim=1)
            product = torch.einsum("pr,prij->pij", points, curl)
        integral = torch.einsum("p,pij,pk->ijk", weights, product, third)
        difference = integral - method.factor(l1, l2, l3) * wigner_3j(l1, l2, l3)
        assert difference.abs().max() < TOLERANCES["integral"] * (1 + integral.abs().max())


def test_gaunt_factors_are_the_3j_symbols_of_their_orders() -> None:
    full = get_method("gaunt_full")
    assert full.factor(1, 1, 0) == pytest.approx(math.sqrt(9) / math.sqrt(3))
    assert full.factor(1, 1, 1) == pytest.approx(math.sqrt(27 * 4) / math.sqrt(6))
    assert abs(full.factor(2, 2, 2)) == pytest.approx(math.sqrt(125) * math.sqrt(2 / 35))


@pytest.mark.parametrize(
    ("max_degree", "lost"), [(2, []), (4, []), (6, [(3, 5, 5), (5, 3, 5), (5, 5, 3)])]
)
def test_matrices_lose_the_zeros_of_the_6j_symbols(
    max_degree: int, lost: list[tuple[int, int, int]]
) -> None:
    method = get_method("matrix", max_degree)
    degrees = range(max_degree + 1)
    missing = [
        (l1, l2, l3)
        for l1, l2, l3 in itertools.product(degrees, repeat=3)
        if abs(l1 - l2) <= l3 <= l1 + l2 and not method.has_path(l1, l2, l3)
    ]
    assert missing == lost
    assert not method.has_path(max_degree, max_degree, max_degree + 1)


def test_every_method_is_found_and_others_are_not() -> None:
    assert [get_method(name).name for name in METHODS] == list(METHODS)
    assert {get_method(name).weight_rank for name in ("gaunt", "matrix")} == {"separable"}
    with pytest.raises(ValueError, match="method must be one of"):
        get_method("fast")
