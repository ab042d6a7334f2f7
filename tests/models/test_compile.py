"""`torch.compile` takes the models' energies and forces as one graph, with the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
from ase.build import molecule
from torch import Tensor

from eqtp.graph import Graph
from eqtp.models.registry import model_class
from eqtp.models.training.data import from_ase

TOLERANCE = 1e-10  # relative, in float64: the operations are the same, their order may differ
COMMON: dict[str, Any] = {
    "atomic_numbers": [1, 6, 8],
    "atomic_energies": [-13.6, -1030.0, -2041.0],
    "r_max": 4.0,
}
MACE: dict[str, Any] = {
    "avg_num_neighbors": 6.0,
    "num_bessel": 4,
    "max_ell": 2,
    "correlation": 2,
    "hidden_irreps": "4x0e+4x1o",
    "mlp_irreps": "4x0e",
    "radial_mlp": (8,),
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MACE": ("MACE", MACE),
    "MACE, gaunt": ("MACE", MACE | {"product": "gaunt"}),
    "MACE, gaunt_iterated": ("MACE", MACE | {"product": "gaunt_iterated"}),
    "ESCN": (
        "ESCN",
        {
            "avg_num_neighbors": 6.0,
            "lmax": 2,
            "m_max": 1,
            "channels": 4,
            "hidden_channels": 3,
            "num_layers": 2,
            "edge_channels": 8,
            "num_rbf": 8,
        },
    ),
    "TensorNet": ("TensorNet", {"channels": 4, "num_layers": 1, "num_rbf": 4}),
}


@pytest.mark.parametrize("name", MODELS)
def test_energies_and_forces_compile_as_one_graph(name: str) -> None:
    import torch._dynamo

    torch._dynamo.reset()
    torch.manual_seed(0)
    class_name, options = MODELS[name]
    model: Any = model_class(class_name)(**COMMON, **options).double().eval()
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
        torch.testing.assert_close(
            mine, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())
        )
