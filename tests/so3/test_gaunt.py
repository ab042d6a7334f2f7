from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from eqtp.so3 import gaunt, spherical_harmonics

TOLERANCES = {"quadrature": 1e-13}  # an exact rule of 136 points; 2e-15 measured


def quadrature(degree: int) -> tuple[Tensor, Tensor]:
    """Unit vectors [P, 3] and weights [P], exact for polynomials of `degree` on the sphere."""
    nodes, node_weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    y = torch.tensor(nodes)[:, None]
    angle = torch.arange(degree + 1) * (2 * math.pi / (degree + 1))
    sine = (1 - y**2).sqrt()
    points = torch.stack(torch.broadcast_tensors(sine * angle.sin(), y, sine * angle.cos()), dim=-1)
    weights = torch.tensor(node_weights)[:, None] * (2 * math.pi / (degree + 1))
    return points.reshape(-1, 3), weights.expand(points.shape[:2]).reshape(-1)


def test_equals_the_integral_of_three_harmonics() -> None:
    lmax = 5
    points, weights = quadrature(3 * lmax)
    Y = spherical_harmonics(lmax, points, "integral")
    integral = torch.einsum("p,pi,pj,pk->ijk", weights, Y, Y, Y)
    blocks = [slice(l * l, (l + 1) ** 2) for l in range(lmax + 1)]
    for l1, l2, l3 in itertools.product(range(lmax + 1), repeat=3):
        torch.testing.assert_close(
            gaunt(l1, l2, l3),
            integral[blocks[l1], blocks[l2], blocks[l3]],
            rtol=0,
            atol=TOLERANCES["quadrature"],
        )


def test_with_degree_zero_it_is_the_orthonormality_of_the_harmonics() -> None:
    torch.testing.assert_close(
        gaunt(12, 12, 0)[..., 0],
        torch.eye(25) / math.sqrt(4 * math.pi),
        rtol=0,
        atol=TOLERANCES["quadrature"],
    )


def test_vanishes_exactly_for_an_odd_sum_and_outside_the_triangle() -> None:
    assert not gaunt(2, 3, 4).any()
    assert gaunt(1, 1, 3).shape == (3, 3, 7)
    assert not gaunt(1, 1, 3).any()


def test_refuses_negative_degrees() -> None:
    with pytest.raises(ValueError, match="degrees >= 0"):
        gaunt(1, -2, 1)
