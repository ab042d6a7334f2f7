"""Neighbour lists against a brute-force sum over periodic images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ase import Atoms

from eqtp.models.training.neighbors import edges, neighbor_list

OPEN = np.array([False, False, False])
PERIODIC = np.array([True, True, True])


def brute_force(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, r_max: float
) -> set[tuple[int, ...]]:
    """All edges, over every image that can hold an atom within r_max."""
    # Planes of a periodic direction are 1 / |column of the inverse| apart.
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    fractional = positions @ np.linalg.inv(cell)
    reach = np.ceil(r_max / heights + np.ptp(fractional, axis=0)).astype(int)
    ranges = [range(-n, n + 1) if p else (0,) for n, p in zip(reach, pbc, strict=True)]
    found = set()
    for shift in itertools.product(*ranges):
        for i, j in itertools.product(range(len(positions)), repeat=2):
            vector = positions[j] - positions[i] + np.array(shift) @ cell
            if np.linalg.norm(vector) < r_max and (i != j or any(shift)):
                found.add((i, j, *shift))
    return found


def as_set(src: np.ndarray, dst: np.ndarray, shift: np.ndarray) -> set[tuple[int, ...]]:
    return set(zip(src.tolist(), dst.tolist(), *shift.T.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_equals_brute_force_for_any_cell_and_any_open_directions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(1.0, 4.0, 3)) + rng.normal(size=(3, 3))
    while abs(np.linalg.det(cell)) < 3.0:
        cell = np.diag(rng.uniform(1.0, 4.0, 3)) + rng.normal(size=(3, 3))
    pbc = np.array([bool(seed >> bit & 1) for bit in range(3)])  # all eight kinds
    positions = 3.0 * rng.normal(size=(rng.integers(1, 6), 3))  # partly outside the cell
    r_max = rng.uniform(1.0, 4.0)
    src, dst, shift = neighbor_list(positions, cell, pbc, r_max)
    expected = brute_force(positions, cell, pbc, r_max)
    assert as_set(src, dst, shift) == expected
    assert len(src) == len(expected)


def test_a_cell_much_smaller_than_the_cutoff() -> None:
    cell = np.array([[1.1, 0.0, 0.0], [0.5, 0.9, 0.0], [0.3, 0.2, 1.0]])
    positions = np.array([[0.1, 0.2, 0.3]])
    found = neighbor_list(positions, cell, PERIODIC, 4.0)
    assert as_set(*found) == brute_force(positions, cell, PERIODIC, 4.0)
    assert len(found[0]) > 250


@pytest.mark.parametrize(("r_max", "shells"), [(0.9, 0), (1.1, 6), (1.5, 18), (1.8, 26)])
def test_shells_of_the_simple_cubic_lattice(r_max: float, shells: int) -> None:
    src, dst, _ = neighbor_list(np.zeros((1, 3)), np.eye(3), PERIODIC, r_max)
    assert len(src) == shells
    assert (src == 0).all()
    assert (dst == 0).all()


def test_order_is_dst_then_src_then_shift() -> None:
    rng = np.random.default_rng(3)
    src, dst, shift = neighbor_list(rng.uniform(size=(4, 3)), np.eye(3) * 2, PERIODIC, 3.0)
    rows = list(zip(dst, src, *shift.T, strict=True))
    assert rows == sorted(rows)
    assert src.dtype == dst.dtype == shift.dtype == np.int64


def test_order_does_not_depend_on_the_image_an_atom_stands_in() -> None:
    rng = np.random.default_rng(4)
    cell = np.diag([3.0, 4.0, 5.0])
    positions = rng.uniform(0, 3, (5, 3))
    moved = positions + np.array([[1, 0, 0], [0, -2, 0], [0, 0, 3], [0, 0, 0], [1, 1, 1]]) @ cell
    src, dst, shift = neighbor_list(positions, cell, PERIODIC, 3.5)
    src2, dst2, shift2 = neighbor_list(moved, cell, PERIODIC, 3.5)
    assert (src == src2).all()
    assert (dst == dst2).all()
    lengths = np.linalg.norm(positions[dst] - positions[src] + shift @ cell, axis=1)
    lengths2 = np.linalg.norm(moved[dst2] - moved[src2] + shift2 @ cell, axis=1)
    np.testing.assert_allclose(np.sort(lengths), np.sort(lengths2), atol=1e-12)


def test_open_directions_need_no_cell_vector() -> None:
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 7.0]])
    slab = np.diag([2.0, 2.0, 0.0])
    parallel = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0]])
    pbc = np.array([True, True, False])
    expected = as_set(*neighbor_list(positions, np.diag([2.0, 2.0, 50.0]), pbc, 3.0))
    assert len(expected) == 16
    for cell in (slab, parallel):
        assert as_set(*neighbor_list(positions, cell, pbc, 3.0)) == expected


def test_isolated_atoms_have_no_edges() -> None:
    src, dst, shift = neighbor_list(np.array([[0.0, 0, 0], [9.0, 0, 0]]), np.eye(3), OPEN, 5.0)
    assert src.shape == dst.shape == (0,)
    assert shift.shape == (0, 3)


@pytest.mark.parametrize(
    "cell",
    [np.zeros((3, 3)), np.diag([1.0, 1.0, 0.0]), np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])],
)
def test_a_periodic_cell_without_volume_is_refused(cell: np.ndarray) -> None:
    with pytest.raises(ValueError, match="non-zero volume"):
        neighbor_list(np.zeros((1, 3)), cell, PERIODIC, 2.0)


@pytest.mark.parametrize("r_max", [0.0, -1.0, float("nan")])
def test_the_cutoff_must_be_positive(r_max: float) -> None:
    with pytest.raises(ValueError, match="r_max must be positive"):
        neighbor_list(np.zeros((1, 3)), np.eye(3), OPEN, r_max)


def test_two_atoms_at_one_place_are_refused_also_through_the_cell() -> None:
    cell = [4.0, 4.0, 4.0]
    with pytest.raises(ValueError, match=r"frame 7: atoms must be at least .* atoms 1 and 0"):
        edges(Atoms("HHO", [[0, 0, 0], [0, 0, 1e-4], [1, 1, 1]]), 3.0, "frame 7")
    through = Atoms("HH", [[0, 0, 0], [4.0, 0, 1e-5]], cell=cell, pbc=True)
    with pytest.raises(ValueError, match="apart"):
        edges(through, 0.5)
    through.pbc = False
    assert len(edges(through, 5.0)[0]) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_positions_and_cell_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match=r"positions must be finite.*atom 1"):
        edges(Atoms("HH", [[0, 0, 0], [0, bad, 1]]), 3.0)
    with pytest.raises(ValueError, match="cell must be finite"):
        edges(Atoms("H", [[0, 0, 0]], cell=[bad, 1, 1]), 3.0)


def test_a_structure_without_atoms_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one atom"):
        edges(Atoms(), 3.0)
