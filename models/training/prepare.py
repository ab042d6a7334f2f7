"""From a config to everything that training starts with; all checks happen here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import nn

from eqtp.models.registry import model_class
from eqtp.models.training.config import Config
from eqtp.models.training.data import StructureDataset
from eqtp.models.training.datasets import Splits, load_files, load_named
from eqtp.models.training.labels import LabelKeys
from eqtp.models.training.model_config import ModelConfig
from eqtp.models.training.statistics import Statistics, atomic_energies, statistics
from eqtp.models.training.structure import Structure
from eqtp.models.training.targets import hyperparameters_of


@dataclass(frozen=True)
class Prepared:
    """What training starts with.

    Attributes:
        splits: The data set.
        energies: E0 of each element, atomic number -> eV.
        statistics: Of the training set.
        train: Graphs of the training set.
        valid: Graphs of the validation set.
        model: With initial weights, in the config's dtype.
    """

    splits: Splits
    energies: dict[int, float]
    statistics: Statistics
    train: list[Structure]
    valid: list[Structure]
    model: nn.Module

    def summary(self) -> str:
        """One line on the data and one on the model."""
        tests = ", ".join(f"{name}: {len(frames)}" for name, frames in self.splits.tests.items())
        energies = ", ".join(f"{chemical_symbols[z]} {e:.4f}" for z, e in self.energies.items())
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"data {self.splits.name}: {len(self.train)} training and {len(self.valid)} "
            f"validation frames; test frames: {tests or 'none'}\n"
            f"E0 [eV]: {energies}; scale {self.statistics.scale:.4f} eV/Å, shift "
            f"{self.statistics.shift:.4f} eV, {self.statistics.avg_num_neighbors:.2f} neighbours\n"
            f"model {type(self.model).__name__}: {parameters} parameters"
        )


def prepare(config: Config) -> Prepared:
    """Loads and checks the data, and builds the model.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if data, config or both together make no sense.
    """
    splits = load_data(config)
    source: Mapping[str | int, float] | Literal["isolated", "average"]
    if isinstance(config.data.e0s, dict):
        source = dict(config.data.e0s.items())
    else:
        source = config.data.e0s or ("isolated" if splits.isolated else "average")
    if _energies_matter(config, splits):
        energies = atomic_energies(source, splits.train, splits.isolated)
    else:
        energies = dict.fromkeys(sorted({int(z) for a in splits.train for z in a.numbers}), 0.0)
        splits.notes.append(
            "trained without energies and forces: those of this model mean nothing, only "
            f"{', '.join(config.data.targets)}"
        )
    _check_elements(splits, set(energies))
    dtype = getattr(torch, config.training.dtype)
    targets = config.data.named_targets
    r_max = config.model.r_max
    train = list(StructureDataset(splits.train, r_max, dtype=dtype, targets=targets))
    valid = list(StructureDataset(splits.valid, r_max, dtype=dtype, targets=targets))
    figures = statistics(train, energies)
    torch.manual_seed(config.training.seed)
    tensors = hyperparameters_of(config.data.targets, train)
    model = build_model(config.model, energies, figures, tensors).to(dtype)
    return Prepared(splits, energies, figures, train, valid, model)


def load_data(config: Config) -> Splits:
    """The frames that the config names, with the labels that its losses need."""
    data = config.data
    if data.name is not None:
        return load_named(
            data.name,
            folder=data.path,
            valid_fraction=data.valid_fraction,
            seed=config.training.seed,
        )
    assert data.train_file is not None
    root = Path(data.path or ".")
    return load_files(
        root / data.train_file,
        valid_file=root / data.valid_file if data.valid_file else None,
        valid_fraction=data.valid_fraction,
        test_files={name: root / file for name, file in data.test_files.items()},
        keys=LabelKeys(data.energy_key, data.forces_key, data.stress_key),
        require=_required_labels(config),
        targets={name: (target.target, target.key) for name, target in data.targets.items()},
        seed=config.training.seed,
    )


def _required_labels(config: Config) -> list[str]:
    phases = config.training.phases
    return [
        name
        for name in ("energy", "forces", "stress")
        if any(getattr(phase, f"{name}_weight") > 0 for phase in phases)
    ]


def _energies_matter(config: Config, splits: Splits) -> bool:
    """Whether a phase trains on energies or forces, or reference energies are given or at hand."""
    return bool(_required_labels(config) or config.data.e0s or splits.isolated)


def _check_elements(splits: Splits, known: set[int]) -> None:
    """Refuses validation and test sets with elements that the training set does not have."""
    sets: dict[str, Sequence[Atoms]] = {"validation": splits.valid, **splits.tests}
    for name, frames in sets.items():
        unknown = {int(z) for atoms in frames for z in atoms.numbers} - known
        if unknown:
            raise ValueError(
                f"every element of the {name} set must occur in the training set, which has "
                f"{_symbols(known)}, got {_symbols(unknown)}"
            )


def _symbols(numbers: set[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in sorted(numbers))


def build_model(
    config: ModelConfig,
    energies: dict[int, float],
    figures: Statistics,
    tensor_targets: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model of a config, with what its data say."""
    options = config.model_dump(exclude={"name", "scale", "shift"})
    kind = model_class(config.name)
    if tensor_targets:
        options["tensor_targets"] = tensor_targets
    if "avg_num_neighbors" in inspect.signature(kind).parameters:
        options["avg_num_neighbors"] = figures.avg_num_neighbors
    return kind(
        atomic_numbers=list(energies),
        atomic_energies=list(energies.values()),
        scale=figures.scale if config.scale == "rms_forces" else config.scale,
        shift=figures.shift if config.shift == "mean" else config.shift,
        **options,
    )
