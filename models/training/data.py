"""Labelled structures: reading files, checking them, and turning them into graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from ase import Atoms
from ase.io import iread
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from eqtp.models.training.labels import LabelKeys, attach_labels, find_labels
from eqtp.models.training.neighbors import neighbor_list
from eqtp.models.training.structure import Structure

# Two atoms closer than this are one atom written twice: the shortest bond there is (H2) has
# 0.74 Å, and at 1200 K no pair of 3BPA comes below 0.8 Å.
MIN_DISTANCE = 1e-3


def read(
    path: str | Path,
    *,
    keys: LabelKeys | None = None,
    require: Sequence[str] | None = None,
    index: str = ":",
) -> list[Atoms]:
    """Reads labelled structures from any file that ASE reads, compressed or not.

    Labels are looked for under `energy`, `forces`, `stress`, `virials` and the same names with
    `REF_` before them, or under the keys that the user chose. Everything is checked here, so
    that nothing wrong reaches the training.

    Args:
        path: extended XYZ (also .xz, .gz, .bz2), ASE database, VASP output, ...
        keys: names of the labels in the file.
        require: labels that every frame must have, e.g. `("energy", "forces")`; isolated
            atoms need an energy only. By default each frame must have at least one of energy
            and forces; `()` asks for none.
        index: frames to read, in ASE's notation, e.g. ":100".

    Returns:
        Structures whose labels stand in a `SinglePointCalculator` under ASE's names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and frame, for an empty or truncated file, missing, wrongly
            shaped or non-finite labels or positions, two atoms at one place, or a periodic cell
            without volume.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    frames = []
    for i, atoms in enumerate(_frames(path, index)):
        where = f"{path}, frame {i}"
        _check_geometry(atoms, where)
        labels = find_labels(atoms, keys, where)
        _check_present(atoms, labels, require, where)
        frames.append(attach_labels(atoms, labels))
    return frames


@overload
def from_ase(
    atoms: Atoms,
    r_max: float,
    *,
    dtype: torch.dtype | None = ...,
    keys: LabelKeys | None = ...,
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
        atoms: one structure or a list of them; labels are taken along where they are found.
        r_max: cutoff of the neighbour list, Å.
        dtype: of positions, shifts, cells, forces and stresses; `torch.get_default_dtype()` by
            default. Edges are found in float64, and energies stay float64 (a total energy of
            -17660 eV has steps of 2 meV in float32).
        keys: names of the labels.

    Returns:
        A `Structure` for one structure, a PyG `Batch` for a list.

    Raises:
        ValueError: as `read`, and if only some structures of a list have a label.

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

    Raises:
        ValueError: as `from_ase`.

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
    ) -> None:
        if len(atoms) == 0:
            raise ValueError("a data set must have at least one structure, got an empty list")
        dtype = dtype or torch.get_default_dtype()
        self.r_max = r_max
        self._structures = [
            _structure(one, r_max, dtype, keys, f"structure {i}") for i, one in enumerate(atoms)
        ]
        self._check_same_labels()

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
        return sorted({int(z) for s in self._structures for z in s.atomic_numbers})

    def _check_same_labels(self) -> None:
        """Structures of one batch must have the same labels."""
        for name in ("energy", "forces", "stress"):
            labelled = [name in structure for structure in self._structures]
            if any(labelled) and not all(labelled):
                raise ValueError(
                    f"either all structures or none must have {name!r}, but structure "
                    f"{labelled.index(True)} has it and structure {labelled.index(False)} has not"
                )


def _frames(path: Path, index: str) -> Iterator[Atoms]:
    """Frames of a file, with reading errors that name file and frame."""
    number = 0
    try:
        for atoms in iread(path, index=index):
            yield atoms
            number += 1
    except Exception as error:
        raise ValueError(
            f"{path}, frame {number}: the file must be complete and readable by ASE, "
            f"got {type(error).__name__}: {error}"
        ) from error
    if number == 0:
        raise ValueError(f"{path}: the file must hold at least one structure, got none")


def _check_present(
    atoms: Atoms, labels: dict[str, object], require: Sequence[str] | None, where: str
) -> None:
    """Refuses a frame without the labels that training needs."""
    if require is None:
        if "energy" not in labels and "forces" not in labels:
            raise ValueError(
                f"{where}: a label must be found (energy, forces, REF_energy or REF_forces), "
                f"the names there are: {_names(atoms)}; name the keys of your file"
            )
        return
    for name in ("energy",) if is_isolated_atom(atoms) and require else require:
        if name not in labels:
            raise ValueError(
                f"{where}: {name} must be found under {name!r} or 'REF_{name}', "
                f"the names there are: {_names(atoms)}; name the keys of your file"
            )


def _names(atoms: Atoms) -> str:
    names = {*atoms.info, *atoms.arrays, *(atoms.calc.results if atoms.calc else ())}
    return ", ".join(sorted(names - {"numbers", "positions"})) or "none"


def is_isolated_atom(atoms: Atoms) -> bool:
    """Tells whether a frame is one atom alone, whose energy is a reference energy E0."""
    marked = atoms.info.get("config_type") == "IsolatedAtom"
    return len(atoms) == 1 and (marked or not atoms.pbc.any())


def _check_geometry(atoms: Atoms, where: str) -> None:
    """Refuses structures that have no meaningful graph."""
    if len(atoms) == 0:
        raise ValueError(f"{where}: a structure must have at least one atom, got none")
    if not np.isfinite(atoms.positions).all():
        bad = int(np.nonzero(~np.isfinite(atoms.positions).all(axis=1))[0][0])
        raise ValueError(
            f"{where}: positions must be finite, got {atoms.positions[bad]} (atom {bad})"
        )
    _edges(atoms, 0.5, where)


def _edges(atoms: Atoms, r_max: float, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of a structure with shifts in Å; refuses atoms at one place."""
    cell = np.asarray(atoms.cell.array, dtype=np.float64)
    try:
        src, dst, images = neighbor_list(atoms.positions, cell, atoms.pbc, r_max)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    shift = images @ cell
    distance = np.linalg.norm(atoms.positions[dst] - atoms.positions[src] + shift, axis=1)
    if (distance < MIN_DISTANCE).any():
        edge = int(distance.argmin())
        raise ValueError(
            f"{where}: atoms must be at least {MIN_DISTANCE} Å apart, got {distance[edge]:.2e} Å "
            f"between atoms {src[edge]} and {dst[edge]}; remove the duplicate"
        )
    return src, dst, shift


def _structure(
    atoms: Atoms, r_max: float, dtype: torch.dtype, keys: LabelKeys | None, where: str
) -> Structure:
    """The graph of one structure."""
    _check_geometry(atoms, where)
    src, dst, shift = _edges(atoms, r_max, where)
    structure = Structure(
        atomic_numbers=torch.from_numpy(atoms.numbers.astype(np.int64)),
        positions=torch.as_tensor(atoms.positions, dtype=dtype),
        edge_src=torch.from_numpy(src),
        edge_dst=torch.from_numpy(dst),
        edge_shift=torch.as_tensor(shift, dtype=dtype),
        cell=torch.as_tensor(atoms.cell.array, dtype=dtype).unsqueeze(0),
        pbc=torch.as_tensor(atoms.pbc).unsqueeze(0),
        batch=torch.zeros(len(atoms), dtype=torch.int64),
        num_nodes=len(atoms),
    )
    labels = find_labels(atoms, keys, where)
    if "energy" in labels:
        structure.energy = torch.tensor([labels["energy"]], dtype=torch.float64)
    for name in ("forces", "stress"):
        if name in labels:
            value = torch.as_tensor(labels[name], dtype=dtype)
            structure[name] = value.unsqueeze(0) if name == "stress" else value
    return structure
