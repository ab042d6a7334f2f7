"""A small smooth potential with the interface of `eqtp.models`, for tests of what uses a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn


class MorsePotential(nn.Module):
    """Morse pairs with a polynomial cutoff: smooth to second order, bound, any elements."""

    atomic_energies: Tensor
    element_index: Tensor

    def __init__(
        self, *, atomic_numbers: list[int], atomic_energies: list[float], r_max: float = 4.0
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "atomic_numbers": list(atomic_numbers),
            "atomic_energies": list(atomic_energies),
            "r_max": r_max,
        }
        self.atomic_numbers = list(atomic_numbers)
        self.r_max = r_max
        self.depth = nn.Parameter(0.5 + torch.rand(len(atomic_numbers), len(atomic_numbers)))
        energies = torch.tensor(atomic_energies, dtype=torch.float64)
        self.register_buffer("atomic_energies", energies)
        index = torch.full((119,), -1)
        index[atomic_numbers] = torch.arange(len(atomic_numbers))
        self.register_buffer("element_index", index, persistent=False)

    def forward(
        self, data: Any, *, compute_forces: bool = True, compute_stress: bool = False
    ) -> dict[str, Tensor]:
        positions, num_graphs = data.positions, len(data.cell)
        displacement = torch.zeros(num_graphs, 3, 3, dtype=positions.dtype)
        if compute_forces or compute_stress:
            positions = positions.detach().requires_grad_()
            displacement.requires_grad_()
        vector = positions[data.edge_dst] - positions[data.edge_src] + data.edge_shift
        graph = data.batch[data.edge_src]
        vector = vector + torch.einsum("ei,eij->ej", vector, displacement[graph])
        length = vector.norm(dim=1)
        u = (length / self.r_max).clamp(max=1)
        species = self.element_index[data.atomic_numbers]
        depth = (self.depth + self.depth.T)[species[data.edge_src], species[data.edge_dst]]
        morse = (1 - torch.exp(-1.5 * (length - 1.4))) ** 2 - 1
        edge_energy = 0.25 * depth * morse * (1 - 10 * u**3 + 15 * u**4 - 6 * u**5)
        node_energy = self.atomic_energies[species].index_add(
            0, data.edge_dst, edge_energy.to(self.atomic_energies.dtype)
        )
        energy = torch.zeros(num_graphs, dtype=torch.float64)
        energy = energy.index_add(0, data.batch, node_energy.double())
        out = {"energy": energy, "node_energy": node_energy}
        if compute_forces or compute_stress:
            force, virial = torch.autograd.grad(
                energy.sum(), (positions, displacement), create_graph=self.training
            )
            out["forces"] = -force
        if compute_stress:
            volume = torch.linalg.det(data.cell).abs()
            out["stress"] = (virial + virial.mT) / 2 / volume[:, None, None]
        return out if self.training else {key: value.detach() for key, value in out.items()}


@pytest.fixture
def morse_class(monkeypatch: pytest.MonkeyPatch) -> type[MorsePotential]:
    """The class itself, known to `save` and `load` by its name."""
    from eqtp.models import registry

    monkeypatch.setitem(registry.MODEL_MODULES, "MorsePotential", MorsePotential.__module__)
    return MorsePotential


@pytest.fixture
def morse(morse_class: type[MorsePotential]) -> MorsePotential:
    """A potential for H, C, N and O with a cutoff of 4 Å."""
    return morse_class(
        atomic_numbers=[1, 6, 7, 8], atomic_energies=[-13.6, -1029.1, -1484.3, -2041.8]
    )


@pytest.fixture
def mace() -> Any:
    """A small MACE for H, C, N and O, its weights random."""
    from eqtp.models import MACE

    return MACE(
        atomic_numbers=[1, 6, 7, 8],
        atomic_energies=[-13.6, -1029.1, -1484.3, -2041.8],
        avg_num_neighbors=8.0,
        r_max=4.0,
        hidden_irreps="8x0e+8x1o",
        mlp_irreps="8x0e",
        radial_mlp=(16, 16),
        max_ell=2,
        correlation=2,
        scale=1.3,
        shift=0.2,
    )
