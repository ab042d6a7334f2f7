"""Neighbour lists: every ordered pair of atoms within a cutoff, periodic images included."""

# ASE is typed in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell
from jaxtyping import Bool, Float64, Int64
from vesin import NeighborList

# Periodic cell vectors that span less than this fraction of the product of their lengths are
# called linearly dependent: 1e-8 is far below any crystal (a 1 degree angle gives 1.7e-2) and
# far above the rounding of float64 coordinates.
_MIN_RELATIVE_VOLUME = 1e-8

# Two atoms closer than this (Å) are one atom written twice: the shortest bond there is, H2, has
# 0.74 Å.
MIN_DISTANCE = 1e-3


def neighbor_list(
    positions: Float64[np.ndarray, "num_atoms 3"],
    cell: Float64[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, " 3"],
    r_max: float,
) -> tuple[
    Int64[np.ndarray, " num_edges"],
    Int64[np.ndarray, " num_edges"],
    Int64[np.ndarray, "num_edges 3"],
]:
    """Finds all edges src -> dst shorter than `r_max`, in both directions.

    The vector of an edge is `positions[dst] - positions[src] + shift @ cell`. An atom is a
    neighbour of its own periodic images, never of itself. Cells may be triclinic and smaller
    than `r_max`; any of the three directions may be open.

    Args:
        positions: Å, not necessarily inside the cell.
        cell: cell vectors in rows, Å. Vectors of open directions are not used.
        pbc: which cell vectors are periodic.
        r_max: cutoff, Å.

    Returns:
        `(src, dst, shift)`, sorted by dst, then src, then shift, so that the order depends on
        the structure only; `shift` counts cell vectors.

    Raises:
        ValueError: if `r_max` is not positive, or the periodic cell vectors are zero or
            linearly dependent.

    Example:
        >>> import numpy as np
        >>> chain = np.diag([2.0, 0.0, 0.0])  # one atom in a row, 2 Å apart
        >>> periodic = np.array([True, False, False])
        >>> src, dst, shift = neighbor_list(np.zeros((1, 3)), chain, periodic, 3.0)
        >>> shift[:, 0].tolist()
        [-1, 1]
    """
    if not r_max > 0:
        raise ValueError(f"r_max must be positive (Å), got {r_max}")
    box = _complete_cell(cell, pbc)
    finder = NeighborList(cutoff=r_max, full_list=True)
    src, dst, shift = finder.compute(positions, box, pbc, "ijS")
    src, dst, shift = src.astype(np.int64), dst.astype(np.int64), shift.astype(np.int64)
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], src, dst))
    return src[order], dst[order], shift[order]


def edges(
    atoms: Atoms, r_max: float, where: str = "structure"
) -> tuple[
    Int64[np.ndarray, " num_edges"],
    Int64[np.ndarray, " num_edges"],
    Int64[np.ndarray, "num_edges 3"],
]:
    """`neighbor_list` of a structure, refused where it has no meaning.

    Args:
        atoms: the structure.
        r_max: cutoff, Å, larger than `MIN_DISTANCE`.
        where: how errors call the structure, e.g. "train.xyz, frame 3".

    Returns:
        `(src, dst, shift)` as `neighbor_list`.

    Raises:
        ValueError: for no atoms, positions or cell that are not finite, a periodic cell without
            volume, or two atoms (periodic images included) closer than `MIN_DISTANCE`.
    """
    positions, cell = atoms.positions, atoms.cell.array
    if len(atoms) == 0:
        raise ValueError(f"{where}: a structure must have at least one atom, got none")
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        first = int(finite.argmin())
        raise ValueError(
            f"{where}: positions must be finite, got {positions[first].tolist()} of atom {first}"
        )
    if not np.isfinite(cell).all():
        raise ValueError(f"{where}: the cell must be finite, got {cell.tolist()}")
    try:
        src, dst, shift = neighbor_list(positions, cell, atoms.pbc, r_max)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    distance = np.linalg.norm(positions[dst] - positions[src] + shift @ cell, axis=1)
    if (distance < MIN_DISTANCE).any():
        edge = int(distance.argmin())
        raise ValueError(
            f"{where}: atoms must be at least {MIN_DISTANCE} Å apart, got {distance[edge]:.1e} Å "
            f"between atoms {src[edge]} and {dst[edge]}; remove the duplicate"
        )
    return src, dst, shift


def _complete_cell(
    cell: Float64[np.ndarray, "3 3"], pbc: Bool[np.ndarray, " 3"]
) -> Float64[np.ndarray, "3 3"]:
    """Replaces the vectors of open directions by unit vectors orthogonal to the periodic ones."""
    periodic = cell[pbc]
    box_volume = np.prod(np.linalg.norm(periodic, axis=1))
    volume = np.prod(np.linalg.svd(periodic, compute_uv=False))  # length, area or volume
    if volume <= _MIN_RELATIVE_VOLUME * box_volume:
        raise ValueError(
            "periodic cell vectors must span a non-zero volume, "
            f"got cell={cell.tolist()} with pbc={pbc.tolist()}; "
            "set a cell, or pbc=False for a molecule"
        )
    box: Float64[np.ndarray, "3 3"] = complete_cell(np.where(pbc[:, None], cell, 0.0))
    return box
