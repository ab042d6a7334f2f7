"""Sums of errors over frames: the one quantity behind the loss, the metrics and their reduction.

All entries are sums, so those of batches, of processes and of evaluations simply add up; the
means are taken once, with the counts of everything that was added. A loss built this way does
not depend on how its frames were spread over processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from eqtp.models.training.config import PhaseConfig

# Position of each sum in the vector. "energy" is the total energy of a frame in eV, "per_atom"
# the same divided by its number of atoms, "forces" and "stress" run over components.
FIELDS: tuple[str, ...] = (
    "frames",
    "energy_square",
    "energy_absolute",
    "per_atom_square",
    "per_atom_absolute",
    "forces_components",
    "forces_square",
    "forces_absolute",
    "stress_components",
    "stress_square",
    "stress_absolute",
)
_COUNTS = {"energy": "frames", "per_atom": "frames"}
_COUNTS |= {"forces": "forces_components", "stress": "stress_components"}


def fields(targets: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the sums: `FIELDS`, and three for each tensor target, over its components."""
    kinds = ("components", "square", "absolute")
    return (*FIELDS, *(f"{name}_{kind}" for name in targets for kind in kinds))


def error_sums(
    output: Mapping[str, Tensor], batch: Any, targets: Sequence[str] = ()
) -> Float64[Tensor, " fields"]:
    """The sums of `fields` over the frames of a batch, differentiable in the output.

    Quantities that the batch has no labels for, or that were not computed, count zero components.

    Args:
        output: What a model returned for the batch: "energy" [G], "forces" [N, 3], "stress".
        batch: Labelled frames as `from_ase` makes them.
        targets: Names of the model's tensor targets.
    """
    names = fields(targets)
    energy = output["energy"].double()
    zero = energy.new_zeros(())
    sums = dict.fromkeys(names, zero)
    if "energy" in batch:
        error = energy - batch.energy
        atoms = torch.bincount(batch.batch, minlength=energy.shape[0])
        sums["frames"] = zero + error.numel()
        sums["energy_square"], sums["energy_absolute"] = _moments(error)
        sums["per_atom_square"], sums["per_atom_absolute"] = _moments(error / atoms)
    for name in ("forces", "stress", *targets):
        if name in output and name in batch:
            error = (output[name] - batch[name]).double()
            sums[f"{name}_components"] = zero + error.numel()
            sums[f"{name}_square"], sums[f"{name}_absolute"] = _moments(error)
    return torch.stack([sums[name] for name in names])


def _moments(error: Tensor) -> tuple[Tensor, Tensor]:
    return error.square().sum(), error.detach().abs().sum()


def loss(
    sums: Float64[Tensor, " fields"],
    phase: PhaseConfig,
    kind: str,
    counts: Float64[Tensor, " fields"],
    targets: Sequence[str] = (),
) -> Float64[Tensor, ""]:
    """Weighted sum of mean squares, L = wE mean(dE²) + wF mean(dF²) + wS mean(dS²).

    A tensor target adds w mean(dT²), the mean over all components, in the labels' unit squared.

    The energy error dE of a frame is per atom for kind "mace" (`mace.modules.loss` 0.3.16) and
    total for "paper" (Batatia et al., arXiv 2206.07697, A.5.1).

    Args:
        sums: Error sums of some frames.
        phase: Holds the weights.
        kind: "mace" or "paper".
        counts: Error sums of all frames that the means run over; `sums` itself, or under DDP
            the total over processes.
        targets: Names of the model's tensor targets.
    """
    at = {name: index for index, name in enumerate(fields(targets))}
    energy = "per_atom" if kind == "mace" else "energy"
    weights = {energy: phase.energy_weight}
    weights |= {"forces": phase.forces_weight, "stress": phase.stress_weight}
    weights |= {name: phase.target_weights.get(name, 0.0) for name in targets}
    total = sums.new_zeros(())
    for name, weight in weights.items():
        if weight > 0:
            count = counts[at[_COUNTS.get(name, f"{name}_components")]].clamp(min=1)
            total = total + weight * sums[at[f"{name}_square"]] / count
    return total


def metrics(sums: Float64[Tensor, " fields"], targets: Sequence[str] = ()) -> dict[str, float]:
    """RMSE and MAE in meV, meV/atom, meV/Å and meV/Å³, of the quantities that were compared.

    Those of tensor targets are in the labels' own unit.

    Example:
        >>> sums = torch.zeros(11, dtype=torch.float64)
        >>> sums[:3] = torch.tensor([4.0, 1.0, 2.0])  # 4 frames, sum of squares 1, of |dE| 2
        >>> metrics(sums)["energy_rmse"], metrics(sums)["energy_mae"]
        (500.0, 500.0)
    """
    values = dict(zip(fields(targets), sums.tolist(), strict=True))
    result = {}
    for name, count_name in {**_COUNTS, **{t: f"{t}_components" for t in targets}}.items():
        count, factor = values[count_name], 1000 if name in _COUNTS else 1
        if count:
            result[f"{name}_rmse"] = factor * (values[f"{name}_square"] / count) ** 0.5
            result[f"{name}_mae"] = factor * values[f"{name}_absolute"] / count
    return result
