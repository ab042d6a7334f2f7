"""The graph of one structure, as the models take it."""

from __future__ import annotations

import math
from typing import Any

from ase import Atoms
from torch_geometric.data import Data

CHARGE_KEYS = ("total_charge", "charge")
"""Where `atoms.info` may hold the total charge."""


def total_charge(atoms: Atoms) -> float | None:
    """The total charge of a structure in elementary charges; None where `atoms.info` has none.

    Raises:
        ValueError: It is not a finite number.

    Example:
        >>> from ase.build import molecule
        >>> hydroxide = molecule("OH")
        >>> hydroxide.info["charge"] = -1
        >>> total_charge(hydroxide)
        -1.0
    """
    found = [key for key in CHARGE_KEYS if key in atoms.info]
    if not found:
        return None
    value = atoms.info[found[0]]
    try:
        charge = float(value)
    except (TypeError, ValueError):
        charge = math.nan
    if not math.isfinite(charge):
        raise ValueError(f"info[{found[0]!r}] must be the total charge, a number, got {value!r}")
    return charge


class Structure(Data):  # type: ignore[misc]
    """Atoms and the edges between them; `Batch.from_data_list` joins several.

    Attributes (N atoms, E edges, one graph):
        atomic_numbers: [N] int64.
        positions: [N, 3], Å.
        edge_src: [E] int64, where a message starts.
        edge_dst: [E] int64, where it arrives; edges are sorted by it, then by `edge_src`.
        edge_shift: [E, 3], Å; the vector of an edge is
            `positions[edge_dst] - positions[edge_src] + edge_shift`.
        cell: [1, 3, 3], Å, vectors in rows; zero for a molecule.
        pbc: [1, 3] bool.
        batch: [N] int64, the graph an atom belongs to.
        total_charge: [1], elementary charges (where `atoms.info` has it).
        energy: [1] float64, eV (where labelled).
        forces: [N, 3], eV/Å (where labelled).
        stress: [1, 3, 3], eV/Å^3, dE/dstrain / volume (where labelled).
        A tensor target, by its name: [1, 3, ..., 3], or [N, 3, ..., 3] where every atom has one.
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """How much `key` grows from one structure of a batch to the next."""
        if key in ("edge_src", "edge_dst"):
            return self.num_nodes
        if key == "batch":
            return 1
        return 0

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Everything is joined along the first dimension."""
        return 0
