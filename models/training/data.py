"""From labelled structures to graphs: `read` a file, then `from_ase` or `StructureDataset`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import torch
from ase import Atoms
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from eqtp.models.training.labels import LabelKeys, find_labels
from eqtp.models.training.neighbors import MIN_DISTANCE, edges
from eqtp.models.training.reading import read
from eqtp.models.training.structure import Structure, total_charge
from eqtp.models.training.targets import TargetLabels, find_targets

__all__ = [
    "MIN_DISTANCE",
    "LabelKeys",
    "Structure",
    "StructureDataset",
    "from_ase",
    "read",
]


@overload
def from_ase(
    atoms: Atoms, r_max: float, *, dtype: torch.dtype | None = ..., keys: LabelKeys | None = ...
) -> Structure: ...


@overload
def from_ase(
    atoms: Sequence[Atoms],
    r_max: float,
    *,
    dtype: torch.dtype | None = ...,
    keys: LabelKeys | None = ...,
) -> Batch: ...


def from_ase(
    atoms: Atoms | Sequence[Atoms],
    r_max: float,
    *,
    dtype: torch.dtype | None = None,
    keys: LabelKeys | None = None,
) -> Structure | Batch:
    """Makes the graph of one structure, or a batch of several.

    Args:
        atoms: one structure or a list of them; labels are taken along where they are found, and
            the total charge where `info` has "total_charge" or "charge" (in a list, structures
            without are neutral where others have it).
        r_max: cutoff of the neighbour list, Å.
        dtype: of positions, shifts, cells, forces and stresses; `torch.get_default_dtype()` by
            default. Edges are found in float64, and energies stay float64 (a total energy of
            -17660 eV has steps of 2 meV in float32).
        keys: names of the labels.

    Returns:
        A `Structure` for one structure, a PyG `Batch` for a list.

    Raises:
        ValueError: for positions that are not finite, two atoms at one place, a periodic cell
            without volume, labels of a wrong shape, or a list of which only some are labelled.

    Example:
        >>> from ase.build import molecule
        >>> water = from_ase(molecule("H2O"), r_max=5.0)
        >>> water.edge_src.tolist(), water.edge_dst.tolist()
        ([1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2])
        >>> from_ase([molecule("H2O"), molecule("CH4")], r_max=5.0).num_graphs
        2
    """
    if isinstance(atoms, Atoms):
        return _structure(atoms, r_max, dtype or torch.get_default_dtype(), keys, "structure")
    return Batch.from_data_list(list(StructureDataset(atoms, r_max, dtype=dtype, keys=keys)))


class StructureDataset(Dataset[Structure]):
    """Structures whose graphs are made once and kept.

    Args:
        atoms: labelled structures.
        r_max: cutoff of the neighbour lists, Å.
        dtype: of the tensors; `torch.get_default_dtype()` by default.
        keys: names of the labels.
        targets: tensor-valued labels that every structure must have; attributes by their names.

    Raises:
        ValueError: as `from_ase`, and for an empty list.

    Example:
        >>> from ase.build import molecule
        >>> dataset = StructureDataset([molecule("H2O"), molecule("CH4")], r_max=5.0)
        >>> len(dataset), dataset.num_edges
        (2, [6, 20])
    """

    def __init__(
        self,
        atoms: Sequence[Atoms],
        r_max: float,
        *,
        dtype: torch.dtype | None = None,
        keys: LabelKeys | None = None,
        targets: TargetLabels | None = None,
    ) -> None:
        if len(atoms) == 0:
            raise ValueError("a data set must have at least one structure, got an empty list")
        dtype = dtype or torch.get_default_dtype()
        self.r_max = r_max
        self._structures = [
            _structure(one, r_max, dtype, keys, f"structure {i}", targets)
            for i, one in enumerate(atoms)
        ]
        self._check_same_labels()
        self._complete_charges()

    def __len__(self) -> int:
        return len(self._structures)

    def __getitem__(self, index: int) -> Structure:
        return self._structures[index]

    def __iter__(self) -> Iterator[Structure]:
        return iter(self._structures)

    @property
    def num_edges(self) -> list[int]:
        """Edges of each structure, what a batch is balanced by."""
        return [structure.edge_src.shape[0] for structure in self._structures]

    @property
    def atomic_numbers(self) -> list[int]:
        """The elements that occur, ascending."""
        return sorted({z for s in self._structures for z in s.atomic_numbers.tolist()})

    def _complete_charges(self) -> None:
        """Where some structures have a total charge, the others are neutral."""
        charged = [one for one in self._structures if "total_charge" in one]
        for one in self._structures if charged else []:
            if "total_charge" not in one:
                one.total_charge = torch.zeros_like(charged[0].total_charge)

    def _check_same_labels(self) -> None:
        """Structures of one batch must have the same labels."""
        for name in ("energy", "forces", "stress"):
            labelled = [name in structure for structure in self._structures]
            if any(labelled) and not all(labelled):
                raise ValueError(
                    f"either all structures or none must have {name!r}, but structure "
                    f"{labelled.index(True)} has it and structure {labelled.index(False)} has not"
                )


def _structure(
    atoms: Atoms,
    r_max: float,
    dtype: torch.dtype,
    keys: LabelKeys | None,
    where: str,
    targets: TargetLabels | None = None,
) -> Structure:
    """The graph of one structure."""
    src, dst, images = edges(atoms, r_max, where)
    cell = atoms.cell.array
    structure = Structure(
        atomic_numbers=torch.as_tensor(atoms.numbers, dtype=torch.int64),
        positions=torch.as_tensor(atoms.positions, dtype=dtype),
        edge_src=torch.from_numpy(src),
        edge_dst=torch.from_numpy(dst),
        edge_shift=torch.as_tensor(images @ cell, dtype=dtype),
        cell=torch.as_tensor(cell[np.newaxis], dtype=dtype),
        pbc=torch.as_tensor(atoms.pbc[np.newaxis]),
        batch=torch.zeros(len(atoms), dtype=torch.int64),
        num_nodes=len(atoms),
    )
    charge = total_charge(atoms)
    if charge is not None:
        structure.total_charge = torch.tensor([charge], dtype=dtype)
    labels = find_labels(atoms, keys, where)
    if "energy" in labels:
        structure.energy = torch.tensor([labels["energy"]], dtype=torch.float64)
    if "forces" in labels:
        structure.forces = torch.as_tensor(labels["forces"], dtype=dtype)
    if "stress" in labels:
        structure.stress = torch.as_tensor(labels["stress"][np.newaxis], dtype=dtype)
    for name, value in find_targets(atoms, targets or {}, where).items():
        per_atom = (targets or {})[name][0].per == "atom"
        structure[name] = torch.as_tensor(value if per_atom else value[np.newaxis], dtype=dtype)
    return structure
