"""A pair potential with the interface of the models, small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor, nn

from eqtp.models.training.config import Config


class PairPotential(nn.Module):
    """E = sum of E0 + sum over edges of an MLP of distance and elements."""

    def __init__(self, *, atomic_numbers: list[int], r_max: float = 4.0, width: int = 8) -> None:
        super().__init__()
        self.hyperparameters = {
            "atomic_numbers": atomic_numbers,
            "r_max": r_max,
            "width": width,
        }
        self.atomic_numbers = atomic_numbers
        self.r_max = r_max
        self.embedding = nn.Embedding(max(atomic_numbers) + 1, width)
        self.radial = nn.Linear(8, width, bias=False)
        self.readout = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.register_buffer("centers", torch.linspace(0.5, r_max, 8))

    def weight_decay_parameters(self) -> list[nn.Parameter]:
        return list(self.radial.parameters())

    def forward(
        self, data: Any, *, compute_forces: bool = True, compute_stress: bool = False
    ) -> dict[str, Tensor]:
        positions = data.positions.detach().requires_grad_()
        with torch.enable_grad():
            vector = positions[data.edge_dst] - positions[data.edge_src] + data.edge_shift
            distance = vector.square().sum(-1, keepdim=True).sqrt()
            radial = self.radial(torch.exp(-2 * (distance - self.centers) ** 2))
            elements = self.embedding(data.atomic_numbers)
            hidden = radial * (elements[data.edge_src] + elements[data.edge_dst])
            cutoff = (1 - distance / self.r_max).clamp(min=0) ** 2
            pair = (self.readout(hidden) * cutoff).squeeze(-1)
            node = torch.zeros_like(positions[:, 0]).index_add(0, data.edge_dst, pair)
            energy = torch.zeros(data.cell.shape[0], dtype=torch.float64, device=node.device)
            energy = energy.index_add(0, data.batch, node.double())
            output = {"energy": energy, "node_energy": node}
            if compute_forces:
                (gradient,) = torch.autograd.grad(
                    energy.sum(), positions, create_graph=self.training
                )
                output["forces"] = -gradient
        return output


@pytest.fixture
def pair_potential() -> type[nn.Module]:
    return PairPotential


@pytest.fixture
def frames() -> Callable[[int], list[Atoms]]:
    """Distorted water-like molecules with labels of a harmonic bond."""

    def make(count: int, seed: int = 0) -> list[Atoms]:
        generator = np.random.default_rng(seed)
        made = []
        for _ in range(count):
            positions = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
            positions = positions + 0.05 * generator.standard_normal((3, 3))
            atoms = Atoms("OH2", positions)
            forces, energy = np.zeros((3, 3)), -5.0
            for hydrogen in (1, 2):
                vector = positions[hydrogen] - positions[0]
                length = float(np.linalg.norm(vector))
                energy += 5.0 * (length - 0.96) ** 2
                force = -10.0 * (length - 0.96) * vector / length
                forces[hydrogen] += force
                forces[0] -= force
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            made.append(atoms)
        return made

    return make


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """A config for runs of a second; the data section is not used."""

    def make(**training: Any) -> Config:
        defaults = {"batch_size": 3, "max_epochs": 4, "lr": 0.01, "accelerator": "cpu"}
        return Config.model_validate(
            {"data": {"train_file": "unused.xyz"}, "training": defaults | training}
        )

    return make
