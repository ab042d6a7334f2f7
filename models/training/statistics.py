"""Reference energies of isolated atoms, and the numbers a model is scaled with."""

# ASE is typed in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers as number_of_symbol
from ase.data import chemical_symbols

from eqtp.models.training.labels import find_labels
from eqtp.models.training.reading import is_isolated_atom
from eqtp.models.training.structure import Structure


@dataclass(frozen=True)
class Statistics:
    """What a training set says about the scale of a model.

    Attributes:
        scale: root mean square of the force components, eV/Å.
        shift: mean over structures of (energy - sum of E0) / number of atoms, eV.
        avg_num_neighbors: mean number of edges that arrive at an atom.
    """

    scale: float
    shift: float
    avg_num_neighbors: float


def split_isolated(frames: Sequence[Atoms]) -> tuple[list[Atoms], list[Atoms]]:
    """Separates the frames with one isolated atom: returns `(structures, isolated)`."""
    structures = [atoms for atoms in frames if not is_isolated_atom(atoms)]
    return structures, [atoms for atoms in frames if is_isolated_atom(atoms)]


def atomic_energies(
    source: Mapping[str | int, float] | Literal["isolated", "average"],
    structures: Sequence[Atoms],
    isolated: Sequence[Atoms] = (),
) -> dict[int, float]:
    """Reference energy E0 of each element of a training set.

    Args:
        source: "isolated" takes the energies of the isolated-atom frames; "average" fits
            energy = sum over atoms of E0 by least squares, and warns; a mapping from chemical
            symbol or atomic number to eV is used as it is.
        structures: the labelled training set; its elements are the ones needed.
        isolated: frames with one isolated atom each.

    Returns:
        Atomic number -> E0, eV, ascending.

    Raises:
        ValueError: if an element has no energy, or the source is not one of those.

    Example:
        >>> from ase.build import molecule
        >>> atomic_energies({"H": -13.6, 8: -2042.0}, [molecule("H2O")])
        {1: -13.6, 8: -2042.0}
    """
    needed = sorted({int(z) for atoms in structures for z in atoms.numbers})
    if isinstance(source, Mapping):
        known = {_number(element): float(energy) for element, energy in source.items()}
        remedy = "add them to the mapping"
    elif source == "isolated":
        known = _isolated_energies(isolated)
        remedy = 'add frames with one atom, give the energies as a mapping, or ask for "average"'
    elif source == "average":
        known = _average_energies(structures, needed)
        remedy = "label the energies"
    else:
        raise ValueError(
            f'atomic energies must be "isolated", "average" or a mapping of eV, got {source!r}'
        )
    missing = [chemical_symbols[z] for z in needed if z not in known]
    if missing:
        raise ValueError(
            f"every element must have an atomic energy, missing: {', '.join(missing)} "
            f"(source {source!r}); {remedy}"
        )
    return {z: known[z] for z in needed}


def statistics(structures: Iterable[Structure], energies: Mapping[int, float]) -> Statistics:
    """Computes scale, shift and avg_num_neighbors of a training set.

    The formulas are those of MACE (`compute_mean_rms_energy_forces`,
    `compute_avg_num_neighbors`): scale = sqrt(mean of F_ic^2 over all force components),
    shift = mean over structures of (E - sum_i E0_i) / N. Without forces the scale is the
    standard deviation of that per-atom energy. A scale of zero (or no label) becomes 1.

    Args:
        structures: labelled graphs, e.g. a `StructureDataset`.
        energies: atomic number -> E0, eV.

    Raises:
        ValueError: if there is no structure or an element has no E0.
    """
    per_atom: list[float] = []
    squares, components, edges, atoms = 0.0, 0, 0, 0
    table = torch.full((len(chemical_symbols),), float("nan"), dtype=torch.float64)
    for z, energy in energies.items():
        table[z] = energy
    for structure in structures:
        reference = float(table[structure.atomic_numbers].sum())
        if np.isnan(reference):
            raise ValueError(
                "every element must have an atomic energy, got structure with "
                f"{sorted(set(structure.atomic_numbers.tolist()))} and energies of "
                f"{sorted(energies)}"
            )
        num_atoms = structure.atomic_numbers.shape[0]
        if "energy" in structure:
            per_atom.append((float(structure.energy) - reference) / num_atoms)
        if "forces" in structure:
            squares += float(structure.forces.double().square().sum())
            components += structure.forces.numel()
        edges += structure.edge_src.shape[0]
        atoms += num_atoms
    if atoms == 0:
        raise ValueError("statistics need at least one structure, got none")
    scale = float(np.sqrt(squares / components)) if components else float(np.std(per_atom or [0]))
    shift = float(np.mean(per_atom)) if per_atom else 0.0
    return Statistics(scale=scale or 1.0, shift=shift, avg_num_neighbors=edges / atoms)


def _number(element: str | int) -> int:
    """Atomic number of a chemical symbol or a number."""
    if isinstance(element, str) and element.isdigit():
        element = int(element)
    if isinstance(element, int) and 0 < element < len(chemical_symbols):
        return element
    if isinstance(element, str) and element in number_of_symbol:
        return int(number_of_symbol[element])
    raise ValueError(f"an element must be a chemical symbol or atomic number, got {element!r}")


def _isolated_energies(isolated: Sequence[Atoms]) -> dict[int, float]:
    """E0 from frames with one atom."""
    known: dict[int, float] = {}
    for i, atoms in enumerate(isolated):
        symbol = atoms.get_chemical_symbols()[0]
        labels = find_labels(atoms, where=f"isolated atom {symbol}")
        if "energy" not in labels:
            raise ValueError(f"isolated atom {symbol} (number {i}) must have an energy label")
        z, energy = int(atoms.numbers[0]), labels["energy"]
        if known.setdefault(z, energy) != energy:
            raise ValueError(
                f"isolated atoms of {symbol} must have one energy, got {known[z]} and {energy} eV"
            )
    return known


def _average_energies(structures: Sequence[Atoms], needed: Sequence[int]) -> dict[int, float]:
    """E0 by least squares over the compositions."""
    labels = [find_labels(atoms, where=f"structure {i}") for i, atoms in enumerate(structures)]
    labelled = [
        (a, found["energy"])
        for a, found in zip(structures, labels, strict=True)
        if "energy" in found
    ]
    counts = np.array([[(a.numbers == z).sum() for z in needed] for a, _ in labelled], float)
    energies = np.array([energy for _, energy in labelled])
    if not labelled:
        raise ValueError('atomic energies "average" need energy labels, got none')
    solution, _, rank, _ = np.linalg.lstsq(counts, energies, rcond=None)
    error = float(np.sqrt(np.mean((counts @ solution - energies) ** 2)))
    warnings.warn(
        f"atomic energies were fitted by least squares to {len(labelled)} total energies "
        f"(rank {rank} of {len(needed)} elements, RMS error {error:.3g} eV); they are not "
        "energies of isolated atoms, so dissociation and new compositions will be wrong",
        stacklevel=3,
    )
    return {z: float(e) for z, e in zip(needed, solution, strict=True)}
