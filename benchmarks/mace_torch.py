"""mace-torch's ScaleShiftMACE behind the interface of eqtp's models.

The opponent of the benchmarks and the reference of tests/mace. It needs an environment with
mace-torch (`make test` sets it up in .venv-mace); eqtp itself never imports it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MaceTorch(nn.Module):
    """mace-torch's model with the keywords, the input and the output of `eqtp.models.MACE`.

    The module is built in float64; `.to(dtype)` afterwards, as with eqtp's models. The total
    energy is put together in float64 from mace-torch's interaction energy and the atomic
    energies: mace-torch adds them in the model's dtype, and in float32 a 3BPA molecule's
    -17,000 eV would round the energy to 2 meV. The comparison is not won by that.

    Args:
        atomic_numbers: Elements the model knows.
        atomic_energies: Their energies in eV, in the same order.
        avg_num_neighbors: Average number of neighbours, by which messages are divided.
        r_max: Cutoff in Å.
        num_bessel: Radial basis functions.
        num_polynomial_cutoff: Power p of the cutoff function.
        max_ell: Largest degree of the spherical harmonics.
        correlation: Body order of the contraction.
        num_interactions: Layers.
        hidden_irreps: Features between the layers.
        mlp_irreps: Hidden features of the last readout.
        radial_mlp: Widths of the radial network.
        scale: Factor of the interaction energies in eV.
        shift: Added to each atom's interaction energy in eV.
        **mace_options: Handed to ScaleShiftMACE as they are.
    """

    def __init__(
        self,
        *,
        atomic_numbers: Sequence[int],
        atomic_energies: Sequence[float],
        avg_num_neighbors: float,
        r_max: float = 5.0,
        num_bessel: int = 8,
        num_polynomial_cutoff: int = 5,
        max_ell: int = 3,
        correlation: int = 3,
        num_interactions: int = 2,
        hidden_irreps: str = "32x0e+32x1o",
        mlp_irreps: str = "16x0e",
        radial_mlp: Sequence[int] = (64, 64, 64),
        scale: float = 1.0,
        shift: float = 0.0,
        **mace_options: Any,
    ) -> None:
        super().__init__()
        from eqtp.irreps import Irreps  # before mace: registers what e3nn 0.4.4 loads

        with contextlib.redirect_stdout(io.StringIO()):  # it prints what is not installed
            from mace.modules import ScaleShiftMACE, interaction_classes

        block = interaction_classes["RealAgnosticResidualInteractionBlock"]
        options: dict[str, Any] = {
            "r_max": r_max,
            "num_bessel": num_bessel,
            "num_polynomial_cutoff": num_polynomial_cutoff,
            "max_ell": max_ell,
            "interaction_cls": block,
            "interaction_cls_first": block,
            "num_interactions": num_interactions,
            "num_elements": len(atomic_numbers),
            "hidden_irreps": Irreps(hidden_irreps),
            "MLP_irreps": Irreps(mlp_irreps),
            "atomic_energies": torch.tensor(atomic_energies, dtype=torch.float64).numpy(),
            "avg_num_neighbors": avg_num_neighbors,
            "atomic_numbers": list(atomic_numbers),
            "correlation": correlation,
            "gate": nn.functional.silu,
            "radial_MLP": list(radial_mlp),
            "use_reduced_cg": False,
            "atomic_inter_scale": scale,
            "atomic_inter_shift": shift,
        }
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with warnings.catch_warnings():  # a page of them from e3nn's TorchScript
                warnings.simplefilter("ignore")
                self.mace = ScaleShiftMACE(**(options | mace_options))
        finally:
            torch.set_default_dtype(default)
        self.atomic_numbers = list(atomic_numbers)
        self.r_max = r_max
        # Plain tensors, not buffers: `.to(torch.float32)` must not round the atomic energies.
        self._atomic_energies = torch.tensor(atomic_energies, dtype=torch.float64)
        self._index = torch.full((max(atomic_numbers) + 1,), -1)
        self._index[torch.tensor(self.atomic_numbers)] = torch.arange(len(self.atomic_numbers))

    def forward(
        self, data: Any, *, compute_forces: bool = True, compute_stress: bool = False
    ) -> dict[str, Tensor]:
        """Energy, forces and stress of a batch; see `eqtp.models.MACE`."""
        element = self._index[data.atomic_numbers]
        output = self.mace(
            self.native_input(data),
            training=self.training,
            compute_force=compute_forces,
            compute_stress=compute_stress,
        )
        energy = output["interaction_energy"].double()
        result = {
            "energy": energy.index_add(0, data.batch, self._atomic_energies[element]),
            "node_energy": output["node_energy"],
        }
        if compute_forces:
            result["forces"] = output["forces"]
        if compute_stress:
            result["stress"] = output["stress"]
        return result

    def native_input(self, data: Any) -> dict[str, Tensor]:
        """The dictionary that mace-torch's own `forward` takes."""
        element = self._index[data.atomic_numbers]
        positions = data.positions.detach()
        cell = data.cell.to(positions.dtype)
        periodic = torch.linalg.det(cell) != 0
        inverse = torch.zeros_like(cell)
        inverse[periodic] = torch.linalg.inv(cell[periodic])
        edge_graph = data.batch[data.edge_src]
        shift = data.edge_shift.to(positions.dtype)
        num_graphs = cell.shape[0]
        ends = torch.bincount(data.batch, minlength=num_graphs).cumsum(0)
        return {
            "positions": positions,
            "node_attrs": nn.functional.one_hot(element, len(self.atomic_numbers)).to(
                positions.dtype
            ),
            "edge_index": torch.stack([data.edge_src, data.edge_dst]),
            "shifts": shift,
            "unit_shifts": torch.einsum("ei,eij->ej", shift, inverse[edge_graph]).round(),
            "cell": cell.reshape(-1, 3),
            "batch": data.batch,
            "ptr": torch.cat([ends.new_zeros(1), ends]),
        }

    def weight_decay_parameters(self) -> list[nn.Parameter]:
        """What mace_run_train decays: `linear.weight` of the interactions, and the products."""
        interactions = self.mace.interactions.named_parameters()
        linear = [parameter for name, parameter in interactions if "linear.weight" in name]
        return [*linear, *self.mace.products.parameters()]
