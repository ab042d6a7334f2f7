"""Labels of a structure: where they are looked for, and what they must look like."""

# ASE is typed in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

# Where a label is looked for when the user names no key.
AUTOMATIC_KEYS: dict[str, tuple[str, ...]] = {
    "energy": ("REF_energy", "energy"),
    "forces": ("REF_forces", "forces"),
    "stress": ("REF_stress", "stress"),
    "virials": ("REF_virials", "virials", "REF_virial", "virial"),
}

_GEOMETRY = frozenset({"positions", "numbers", "cell", "pbc"})


@dataclass(frozen=True)
class LabelKeys:
    """Names of the labels in a file; `None` means any of the usual ones.

    Attributes:
        energy: total energy, eV; usual: `REF_energy`, `energy`.
        forces: eV/Å, [N, 3]; usual: `REF_forces`, `forces`.
        stress: eV/Å^3, 6 (Voigt), 9 or 3x3 numbers; usual: `REF_stress`, `stress`.
        virials: eV, -stress * volume; usual: `REF_virials`, `virials`, and without the s.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virials: str | None = None


def find_labels(
    atoms: Atoms, keys: LabelKeys | None = None, where: str = "structure"
) -> dict[str, Any]:
    """Collects the labels of a structure from its calculator results, `info` and `arrays`.

    ASE moves `energy`, `forces` and `stress` of a file to a `SinglePointCalculator` and leaves
    every other name in `info` and `arrays`; all three are searched. Virials become a stress,
    -virials / volume.

    Args:
        atoms: the structure.
        keys: names chosen by the user; a chosen name must exist.
        where: how errors call the structure, e.g. "train.xyz, frame 3".

    Returns:
        Those of `energy` (float, eV), `forces` ([N, 3] float64, eV/Å) and `stress` ([3, 3]
        float64, eV/Å^3) that the structure has.

    Raises:
        ValueError: if a chosen key is missing, two usual keys disagree, or a label has a wrong
            shape or type or holds NaN or infinity.
    """
    chosen = keys or LabelKeys()
    available = available_values(atoms)
    labels: dict[str, Any] = {}
    for name in AUTOMATIC_KEYS:
        value = _select(available, name, getattr(chosen, name), where)
        if value is not None:
            labels[name] = finite_numbers(value, name, where)
    return _shaped(labels, atoms, where)


def attach_labels(atoms: Atoms, labels: dict[str, Any]) -> Atoms:
    """Returns a copy of `atoms` whose labels stand under ASE's own names, in a calculator.

    Names that `find_labels` would look for are removed from `info` and `arrays`, so that the
    labels of the copy are exactly `labels`.
    """
    labelled: Atoms = atoms.copy()
    for names in AUTOMATIC_KEYS.values():
        for name in names:
            labelled.info.pop(name, None)
            labelled.arrays.pop(name, None)
    results = dict(labels)
    if "stress" in results:
        results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])  # what ASE keeps
    if results:
        labelled.calc = SinglePointCalculator(labelled, **results)
    return labelled


def label_names(atoms: Atoms) -> list[str]:
    """Names under which a structure holds values, for error messages."""
    return sorted(available_values(atoms))


def available_values(atoms: Atoms) -> dict[str, Any]:
    """Every named value of a structure, calculator results first.

    Results of other positions (the structure was moved since) are no labels of this one.
    """
    results: dict[str, Any] = {}
    if atoms.calc is not None and not _GEOMETRY.intersection(atoms.calc.check_state(atoms)):
        results = dict(atoms.calc.results)
    per_atom = {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")}
    return {**per_atom, **atoms.info, **results}


def _select(available: dict[str, Any], name: str, key: str | None, where: str) -> Any:
    """The value of one label, or None where the structure has none."""
    if key is not None:
        if key not in available:
            raise ValueError(
                f"{where}: the chosen {name} key {key!r} must exist, "
                f"the keys there are: {', '.join(sorted(available)) or 'none'}"
            )
        return available[key]
    found = [candidate for candidate in AUTOMATIC_KEYS[name] if candidate in available]
    for other in found[1:]:
        if not np.array_equal(available[found[0]], available[other]):
            raise ValueError(
                f"{where}: {name} must be unambiguous, but {found[0]!r} and {other!r} differ; "
                f"choose one as the {name} key"
            )
    return available[found[0]] if found else None


def finite_numbers(value: Any, name: str, where: str) -> np.ndarray:
    """Float64 copy of a label, finite."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{where}: {name} must be real numbers, got {array.dtype}: {value!r:.60}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: {name} must be finite, got NaN or infinity; remove the frame")
    return array


def _shaped(labels: dict[str, np.ndarray], atoms: Atoms, where: str) -> dict[str, Any]:
    """Checks shapes and converts virials to a stress."""
    shaped: dict[str, Any] = {}
    if "energy" in labels:
        energy = labels["energy"]
        if energy.size != 1:
            raise ValueError(f"{where}: energy must be one number, got shape {energy.shape}")
        shaped["energy"] = float(energy.item())
    if "forces" in labels:
        forces = labels["forces"]
        if forces.shape != (len(atoms), 3):
            raise ValueError(
                f"{where}: forces must have shape ({len(atoms)}, 3), got {forces.shape}"
            )
        shaped["forces"] = forces
    if "stress" in labels:
        shaped["stress"] = _symmetric(labels["stress"], "stress", where)
    elif "virials" in labels:
        cell = atoms.cell.array
        volume = abs(float(np.linalg.det(cell)))
        if volume == 0.0:
            raise ValueError(f"{where}: virials need a cell with a volume, got {cell.tolist()}")
        shaped["stress"] = -_symmetric(labels["virials"], "virials", where) / volume
    return shaped


def voigt_to_matrix(value: np.ndarray) -> np.ndarray:
    """[..., 3, 3] from [..., 6] in Voigt's order: xx, yy, zz, yz, xz, xy."""
    return value[..., [[0, 5, 4], [5, 1, 3], [4, 3, 2]]]


def _symmetric(value: np.ndarray, name: str, where: str) -> np.ndarray:
    """3x3 tensor from 6 (Voigt: xx, yy, zz, yz, xz, xy), 9 or 3x3 numbers."""
    if value.shape == (6,):
        return voigt_to_matrix(value)
    if value.shape not in ((9,), (3, 3)):
        raise ValueError(f"{where}: {name} must have 6, 9 or 3x3 numbers, got shape {value.shape}")
    tensor = value.reshape(3, 3)
    if not np.allclose(tensor, tensor.T, rtol=1e-3, atol=1e-6):
        raise ValueError(f"{where}: {name} must be symmetric, got {tensor.tolist()}")
    symmetric: np.ndarray = (tensor + tensor.T) / 2
    return symmetric
