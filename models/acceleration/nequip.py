"""Swaps for NequIP: its product and scatter, also as a model modifier of NequIP's own kind.

NequIP finds modifiers as class methods of the modules inside a model. `register` adds
`enable_eqtp` to its `TensorProductScatter`, beside `enable_CuEquivariance`:

    model = nequip.model.modify(model, [{"modifier": "enable_eqtp"}])
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.backend import Backend
from eqtp.kernels.channelwise import channelwise_tensor_product, supports
from eqtp.models.acceleration.e3nn import product_problem
from eqtp.models.acceleration.kept import graph_of
from eqtp.models.acceleration.structures import random_structures
from eqtp.models.acceleration.swap import Swap, inherits_forward

__all__ = ["ProductScatter", "observe", "register", "swaps_for"]


def swaps_for(model: nn.Module, backend: Backend) -> Iterator[tuple[str, Swap | str]]:
    """Names of modules with their swaps, or why there is none, in words."""
    scatters = sys.modules.get("nequip.nn._tp_scatter_base")
    if scatters is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, scatters.TensorProductScatter):
            yield name, _scatter(module, backend, scatters)


def _scatter(module: Any, backend: Backend, scatters: Any) -> Swap | str:
    tensor_product = sys.modules["e3nn"].o3.TensorProduct
    if not inherits_forward(module, scatters.TensorProductScatter):
        return f"{type(module).__qualname__} has a forward of its own"
    if not inherits_forward(module.tp, tensor_product):
        return f"its product, {type(module.tp).__qualname__}, is not e3nn's"
    try:
        swap = ProductScatter(module, backend)
    except NotImplementedError as error:
        return str(error)
    return swap if supports(swap.problem) else "its paths are not channelwise"


class ProductScatter(Swap):
    """`tp_scatter`: product of sender and harmonics, summed at the receivers."""

    kind = "convolution"

    def __init__(self, module: Any, backend: Backend) -> None:
        super().__init__(module)
        self.problem = product_problem(module.tp)
        self.backend: Backend = backend

    def __call__(
        self, x: Tensor, edge_attr: Tensor, edge_weight: Tensor, edge_dst: Tensor, edge_src: Tensor
    ) -> Tensor:
        """Sums at nodes [N, dim]."""
        return channelwise_tensor_product(
            x,
            edge_attr,
            edge_weight,
            self.problem,
            graph=graph_of(edge_src, edge_dst, len(x)),
            backend=self.backend,
        )

    def arguments(self) -> tuple[Any, ...]:
        """Seven edges between four nodes."""
        problem, edges = self.problem, torch.randint(4, (2, 7))
        x, y = torch.randn(4, problem.irreps_in1.dim), torch.randn(7, problem.irreps_in2.dim)
        return x, y, torch.randn(7, problem.weight_numel), edges[0], edges[1]


def observe(model: Any) -> list[dict[str, Tensor]] | None:
    """Energies, forces and stress of random structures, by name; None for other models."""
    graph_model = sys.modules.get("nequip.nn.graph_model")
    if graph_model is None or not isinstance(model, graph_model.GraphModel):
        return None
    dtype = str(model.metadata["model_dtype"])
    if dtype != str(torch.get_default_dtype()).removeprefix("torch."):
        return []  # its modules convert to the dtype that the model was made with
    library = importlib.import_module("nequip.data")
    keys = library.AtomicDataDict
    device = next(model.parameters()).device
    results = []
    for atoms in random_structures(range(1, len(model.type_names) + 1)):
        data = library.from_ase(atoms)
        data[keys.ATOM_TYPE_KEY] = data[keys.ATOMIC_NUMBERS_KEY] - 1
        r_max = float(model.metadata["r_max"])
        data = library.compute_neighborlist_(data, r_max=r_max)
        output = model({key: value.to(device) for key, value in data.items()})
        names = {"energy": keys.TOTAL_ENERGY_KEY, "forces": keys.FORCE_KEY}
        if atoms.pbc.any():
            names["stress"] = keys.STRESS_KEY
        results.append({name: output[key].detach() for name, key in names.items()})
    return results


def register() -> None:
    """Adds the modifier `enable_eqtp` to NequIP, before it is named in a configuration.

    Once is enough, more does no harm.
    """
    scatter = importlib.import_module("nequip.nn._tp_scatter_base").TensorProductScatter
    utilities = importlib.import_module("nequip.nn.model_modifier_utils")

    def enable_eqtp(
        cls: type, model: nn.Module, backend: Backend = "auto", check: bool = True
    ) -> nn.Module:
        """Enables eqtp's kernels, checked against the model's own."""
        from eqtp.models.acceleration.accelerate import accelerate

        accelerate(model, backend=backend, check=check)
        return model

    mark = utilities.model_modifier(persistent=False, private=False, supported_compile_modes=[])
    scatter.enable_eqtp = mark(classmethod(enable_eqtp))
