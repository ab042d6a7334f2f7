"""`torch.compile` takes the models' energies and forces as one graph, with the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
from ase.build import molecule
from potential_checks import SETTINGS, assert_close
from torch import Tensor

from eqtp.graph import Graph
from eqtp.models.registry import model_class
from eqtp.models.training.data import from_ase

TOLERANCE = 1e-10  # relative, in float64: the operations are the same, their order may differ
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MACE": ("MACE", {}),
    "MACE, gaunt": ("MACE", {"product": "gaunt"}),
    "MACE, gaunt_iterated": ("MACE", {"product": "gaunt_iterated"}),
    "ESCN": ("ESCN", {}),
    "TensorNet": ("TensorNet", {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_energies_and_forces_compile_as_one_graph(name: str) -> None:
    import torch._dynamo

    torch._dynamo.reset()
    torch.manual_seed(0)
    class_name, changes = MODELS[name]
    model: Any = model_class(class_name)(**SETTINGS[class_name], **changes).double().eval()
    data = from_ase(molecule("CH3CH2OH"), 4.0, dtype=torch.float64)
    element = torch.tensor([model.atomic_numbers.index(z) for z in data.atomic_numbers.tolist()])

    def function(positions: Tensor, src: Tensor, dst: Tensor) -> tuple[Tensor, Tensor]:
        vectors = positions[dst] - positions[src]
        energies = model.node_energies(element, vectors, Graph(src, dst, positions.shape[0]))
        (slope,) = torch.autograd.grad(energies.sum(), positions)
        return energies.detach(), slope

    operands = data.positions.clone().requires_grad_(), data.edge_src, data.edge_dst
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        results = compiled(*operands)
    for mine, expected in zip(results, function(*operands), strict=True):
        assert_close(mine, expected, TOLERANCE)
