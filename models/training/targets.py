"""Tensor-valued labels, such as dipoles and polarizabilities: what a config says, and the reading.

A target is found under its name, under `REF_` and its name, or under the key that the config
names, in `info` (one tensor per structure), `arrays` (one per atom) or ASE's results. Labels are
Cartesian: with the indices as dimensions, flat, or for a symmetric matrix in Voigt's order.
"""

# ASE is typed in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms

from eqtp.models.blocks.tensor_heads import TensorTarget, parse_targets
from eqtp.models.training.labels import available_values, finite_numbers, voigt_to_matrix
from eqtp.models.training.model_config import PositiveFloat, Section
from eqtp.so3 import irreps_to_tensor, tensor_to_irreps

__all__ = [
    "TargetConfig",
    "TargetLabels",
    "attach_targets",
    "find_targets",
    "hyperparameters_of",
    "in_every_frame",
    "targets_of",
]


class TargetConfig(Section):
    """A tensor that the model learns beside energies and forces, or alone.

    Attributes:
        key: Its key in the files; None looks for the target's name, with `REF_` before it or not.
        formula: Index symmetry: "i" dipole, "ij=ji" polarizability, "ij" shielding,
            "ijkl=jikl=ijlk=klij" elasticity, "" a scalar such as a charge.
        traceless: Whether every contraction of two indices vanishes (quadrupole, anisotropy).
        parity: What inversion does to it; None: (-1)^(number of indices), a true tensor.
        per: "graph": one per structure, in `info`; "atom": one per atom, in `arrays`.
        unit: Of the labels, for the error table.
        scale: What the model's output is multiplied with, or "rms": of the training labels.
    """

    key: str | None = None
    formula: str = "ij=ji"
    traceless: bool = False
    parity: Literal[-1, 1] | None = None
    per: Literal["graph", "atom"] = "graph"
    unit: str = ""
    scale: PositiveFloat | Literal["rms"] = "rms"

    @property
    def target(self) -> TensorTarget:
        """The same for the model."""
        scale = 1.0 if self.scale == "rms" else self.scale
        fields = self.model_dump(exclude={"key", "scale"})
        return TensorTarget(scale=scale, **fields)


TargetLabels = Mapping[str, tuple[TensorTarget, str | None]]
"""Targets to be read: name -> what it is, and its key or None for the usual ones."""


def targets_of(model: Any) -> dict[str, TensorTarget]:
    """The targets that a model predicts."""
    return parse_targets(getattr(model, "hyperparameters", {}).get("tensor_targets"))


def find_targets(
    atoms: Atoms, targets: TargetLabels, where: str = "structure", *, required: bool = True
) -> dict[str, np.ndarray]:
    """The labels of a structure for the targets.

    Args:
        atoms: The structure.
        targets: What to look for.
        where: How errors call the structure, e.g. "train.xyz, frame 3".
        required: Whether a target without a label is an error; otherwise it is left out.

    Returns:
        Name -> float64 array [3, ..., 3], with the atoms in front for a target per atom. What
        obeys the index symmetry to a thousandth obeys it exactly.

    Raises:
        ValueError: A label is missing, of a wrong shape, not finite, or without the symmetry.
    """
    available = available_values(atoms)
    found = {}
    for name, (target, key) in targets.items():
        keys = [key] if key is not None else [name, f"REF_{name}"]
        present = [k for k in keys if k in available]
        if not present and not required and key is None:
            continue
        if not present:
            raise ValueError(
                f"{where}: the target {name!r} must have a label under {' or '.join(keys)}, the "
                f"keys there are: {', '.join(sorted(available)) or 'none'}"
            )
        values = [finite_numbers(available[k], name, where) for k in present]
        if len(values) > 1 and not np.array_equal(values[0], values[1]):
            raise ValueError(
                f"{where}: {name} must be unambiguous, but {present[0]!r} and {present[1]!r} "
                "differ; choose one as the target's key"
            )
        tensor = _shaped(values[0], target, len(atoms), name, where)
        found[name] = _symmetric(tensor, target, name, where)
    return found


def attach_targets(atoms: Atoms, labels: Mapping[str, np.ndarray], targets: TargetLabels) -> None:
    """Keeps labels under the targets' names, where `find_targets` finds them again."""
    for name, value in labels.items():
        target, key = targets[name]
        for other in (name, f"REF_{name}", key):
            atoms.info.pop(other, None)
            if other is not None:
                atoms.arrays.pop(other, None)
        if target.per == "atom":
            atoms.set_array(name, value)
        else:
            atoms.info[name] = value


def in_every_frame(frames: Sequence[Atoms], targets: TargetLabels) -> TargetLabels:
    """The targets that frames were read with, where all have labels of them; under their names.

    Raises:
        ValueError: Some frames have labels of a target and others not.
    """
    present = {}
    for name, (target, _) in targets.items():
        labelled = [name in (a.arrays if target.per == "atom" else a.info) for a in frames]
        if all(labelled):
            present[name] = (target, name)
        elif any(labelled):
            raise ValueError(
                f"either all frames or none must have labels of {name!r}, but frame "
                f"{labelled.index(True)} has one and frame {labelled.index(False)} has not"
            )
    return present


def hyperparameters_of(
    configs: Mapping[str, TargetConfig], structures: Iterable[Any]
) -> dict[str, dict[str, Any]]:
    """A model's `tensor_targets`; a scale "rms" is that of the components of the labels."""
    structures = list(structures)
    fields = {}
    for name, config in configs.items():
        scale = config.scale
        if scale == "rms":
            labels = torch.cat([structure[name].double().flatten() for structure in structures])
            scale = float(labels.square().mean().sqrt()) or 1.0
        fields[name] = config.model_dump(exclude={"key"}) | {"scale": scale}
    return fields


def _shaped(
    value: np.ndarray, target: TensorTarget, num_atoms: int, name: str, where: str
) -> np.ndarray:
    """The label as [3, ..., 3], or [atoms, 3, ..., 3]."""
    leading = (num_atoms,) if target.per == "atom" else ()
    shape = (*leading, *target.shape)
    entries = 3 ** len(target.shape)
    if value.shape == shape or value.shape == (*leading, entries) or value.size == entries == 1:
        return value.reshape(shape)
    symmetric = len(target.shape) == 2 and all(ir.l != 1 for _, ir in target.irreps)
    if symmetric and value.shape == (*leading, 6):
        return voigt_to_matrix(value)
    usual = f"{shape}, {(*leading, entries)}{f' or {(*leading, 6)} (Voigt)' if symmetric else ''}"
    raise ValueError(
        f"{where}: {name}, one tensor {target.formula!r} per "
        f"{'atom' if leading else 'structure'}, must have shape {usual}, got {value.shape}"
    )


def _symmetric(tensor: np.ndarray, target: TensorTarget, name: str, where: str) -> np.ndarray:
    """The part of a label that obeys the index symmetry, if that is nearly all of it."""
    try:
        x = tensor_to_irreps(torch.from_numpy(tensor), target.formula, target.traceless)
    except ValueError as error:
        raise ValueError(f"{where}: {name}: {error}") from error
    exact: np.ndarray = irreps_to_tensor(x, target.formula, target.traceless).numpy()
    return exact
