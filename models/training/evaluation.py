"""Predictions of a model beside the labels, and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from eqtp.models.training.batches import evaluation_batches
from eqtp.models.training.errors import error_sums, fields, metrics
from eqtp.models.training.structure import Structure
from eqtp.models.training.targets import targets_of


@dataclass(frozen=True)
class Evaluation:
    """A model on one set of frames.

    Attributes:
        name: Of the set.
        num_frames: Structures in it.
        metrics: RMSE and MAE, `energy_rmse` in meV of total energy, `per_atom_rmse` in meV/atom,
            `forces_rmse` in meV/Å, `stress_rmse` in meV/Å³, and the same with `_mae`; those of
            tensor targets by their names.
        labels: "energy" (eV), "per_atom" (eV/atom), "forces" (eV/Å): flat arrays, where labelled.
        predictions: The same of the model.
        units: Unit of each tensor target, of its labels and metrics.
    """

    name: str
    num_frames: int
    metrics: dict[str, float]
    labels: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    units: dict[str, str] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    structures: Sequence[Structure],
    *,
    name: str = "data",
    batch_size: int = 10,
    device: str | torch.device = "cpu",
) -> Evaluation:
    """Evaluates a model on labelled structures.

    Args:
        model: A potential as in `eqtp.models`; it is moved to `device`.
        structures: Graphs made with the model's `r_max` and dtype.
        name: Of the set, for reports.
        batch_size: Structures at a time.
        device: Where to compute.

    Raises:
        ValueError: if no structure has a label.
    """
    model = model.to(device).eval()
    targets = targets_of(model)
    names = tuple(targets)
    sums = torch.zeros(len(fields(names)), dtype=torch.float64, device=device)
    labels: dict[str, list[np.ndarray]] = {}
    predictions: dict[str, list[np.ndarray]] = {}
    for batch in evaluation_batches(structures, batch_size):
        batch = batch.to(device)
        output = model(batch, compute_forces="forces" in batch, compute_stress="stress" in batch)
        output = {key: value.detach() for key, value in output.items()}
        sums += error_sums(output, batch, names)
        for key in ("energy", "forces", "stress", *names):
            if key in batch and key in output:
                labels.setdefault(key, []).append(_flat(batch[key]))
                predictions.setdefault(key, []).append(_flat(output[key]))
        if "energy" in batch:
            atoms = _flat(torch.bincount(batch["batch"]))
            labels.setdefault("per_atom", []).append(labels["energy"][-1] / atoms)
            predictions.setdefault("per_atom", []).append(predictions["energy"][-1] / atoms)
    if not labels:
        raise ValueError(
            f"{name}: an evaluation needs labels of energies, forces or targets, got none"
        )
    return Evaluation(
        name=name,
        num_frames=len(structures),
        metrics=metrics(sums, names),
        labels={key: np.concatenate(parts) for key, parts in labels.items()},
        predictions={key: np.concatenate(parts) for key, parts in predictions.items()},
        units={name: target.unit for name, target in targets.items()},
    )


def _flat(values: torch.Tensor) -> np.ndarray:
    flat: np.ndarray = values.double().cpu().numpy().ravel()
    return flat
