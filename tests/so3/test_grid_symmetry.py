"""Symmetric grids: their orbits, and the classes of harmonics, against reflected points."""

from __future__ import annotations

import pytest
import torch

from eqtp.so3 import spherical_harmonics
from eqtp.so3.grid_symmetry import class_number, orbits, parity_class, symmetric_product_grid
from eqtp.so3.sphere_grid import SphereGrid, sphere_grid

TOLERANCE = 1e-13  # of points and harmonics of size one, 1e-15 measured


def flips(axes: int) -> torch.Tensor:
    """Signs of x, y and z for every set of the coordinates `axes`."""
    sets = [s for s in range(8) if s & ~axes == 0]
    return torch.tensor([[-1.0 if s & bit else 1.0 for bit in (1, 2, 4)] for s in sets])


@pytest.mark.parametrize(
    "grid",
    [
        sphere_grid(9, "lebedev"),
        sphere_grid(15, "lebedev"),
        *(symmetric_product_grid(degree) for degree in (0, 1, 6, 7, 9, 11)),
    ],
    ids=lambda grid: f"{grid.kind} {grid.degree}",
)
def test_orbits_hold_every_point_once_with_one_weight(grid: SphereGrid) -> None:
    seen: list[int] = []
    for orbit in orbits(grid):
        images = flips(orbit.axes) * grid.points[orbit.point]
        assert len(images) == orbit.size
        distances, points = torch.cdist(images, grid.points).min(dim=1)
        assert float(distances.max()) < 1e-7  # the square root of rounding
        torch.testing.assert_close(grid.points[points], images, rtol=0, atol=TOLERANCE)
        weight = grid.weights[orbit.point].expand(orbit.size)
        torch.testing.assert_close(grid.weights[points], weight, rtol=TOLERANCE, atol=0)
        seen += points.tolist()
    assert sorted(seen) == list(range(len(grid)))


def test_harmonics_are_odd_in_the_coordinates_of_their_class() -> None:
    vector = torch.randn(3)
    values = spherical_harmonics(5, vector)
    assert float(values.abs().min()) > 1e-6
    kinds = [parity_class(l, m) for l in range(6) for m in range(-l, l + 1)]
    for bit, signs in zip((1, 2, 4), ([-1, 1, 1], [1, -1, 1], [1, 1, -1]), strict=True):
        expected = torch.tensor([-1.0 if kind & bit else 1.0 for kind in kinds]) * values
        found = spherical_harmonics(5, vector * torch.tensor(signs))
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_classes_on_a_plane_are_numbered_without_gaps() -> None:
    for axes in range(8):
        kinds = [kind for kind in range(8) if kind & ~axes == 0]
        assert [class_number(kind, axes) for kind in kinds] == list(range(len(kinds)))
