"""The 3BPA frames that the MACE benchmarks share, as graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eqtp.models.training.batches import collate as join
from eqtp.models.training.data import from_ase
from eqtp.models.training.datasets import load_named
from eqtp.models.training.statistics import atomic_energies, statistics
from eqtp.models.training.structure import Structure

R_MAX = 5.0
TEMPERATURES = ("300K", "600K", "1200K")


@dataclass(frozen=True)
class ThreeBPA:
    """3BPA: frames at 300 K to train and to choose by, test sets by temperature, E0 in eV."""

    train: list[Structure]
    valid: list[Structure]
    tests: dict[str, list[Structure]]
    energies: dict[int, float]
    notes: list[str]

    @classmethod
    def load(cls) -> ThreeBPA:
        """The frames of `load_named("3bpa")` with their edges, in float64."""
        splits = load_named("3bpa")
        if splits.name != "3bpa":
            raise FileNotFoundError(
                f"this benchmark needs the data set 3bpa, got its stand-in {splits.name!r}: set "
                "EQTP_DATA to the folder that holds 3bpa/"
            )

        def graphs(frames: Sequence[Any]) -> list[Structure]:
            return [from_ase(atoms, R_MAX, dtype=torch.float64) for atoms in frames]

        tests = {
            name: graphs(frames)
            for name, frames in splits.tests.items()
            if name.startswith(TEMPERATURES)
        }
        energies = atomic_energies("isolated", splits.train, splits.isolated)
        return cls(graphs(splits.train), graphs(splits.valid), tests, energies, splits.notes)

    def statistics(self) -> dict[str, Any]:
        """Keywords of every model: atomic energies and statistics of the training frames."""
        found = statistics(self.train, self.energies)
        return {
            "atomic_numbers": list(self.energies),
            "atomic_energies": list(self.energies.values()),
            "avg_num_neighbors": found.avg_num_neighbors,
            "r_max": R_MAX,
            "scale": found.scale,
            "shift": found.shift,
        }


def collate(frames: Sequence[Structure], dtype: torch.dtype) -> Structure:
    """One graph of several frames, in the model's dtype; energies stay float64."""
    batch = join(frames)
    for name in ("positions", "edge_shift", "cell", "forces"):
        batch[name] = batch[name].to(dtype)
    return batch
