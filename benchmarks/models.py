"""Energies with forces, and training steps: MACE, TensorNet and ESCN beside their originals.

A training step is the forward pass, forces, and the gradients of a squared error of both in every
parameter; the optimiser is left out, it is the same for everybody. Errors are those of energies and
forces, or of all gradients, against the same model in float64 with products by plain torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.benchmarks.contestants import Make
from eqtp.benchmarks.graphs import GRAPHS, atoms
from eqtp.benchmarks.harness.case import Case, Contestant, Inputs
from eqtp.benchmarks.harness.family import Choice
from eqtp.benchmarks.harness.providers import require

__all__ = ["MODELS", "cases"]

MODELS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "MACE": {
        "small": ("MACE", {"hidden_irreps": "32x0e+32x1o"}),
        "large": ("MACE", {"hidden_irreps": "128x0e+128x1o"}),
    },
    "TensorNet": {"small": ("TensorNet", {"channels": 32}), "large": ("TensorNet", {})},
    "ESCN": {"small": ("ESCN", {"lmax": 2, "channels": 16}), "large": ("ESCN", {})},
}
"""By name and size: the class in `eqtp.models`, and its hyperparameters."""

STEPS = ("energy and forces", "training step")
TOLERANCES = {  # networks of some layers; gradients of parameters sum over thousands of edges
    torch.float32: {"energy and forces": 2e-4, "training step": 2e-3},
    torch.float64: {"energy and forces": 1e-10, "training step": 1e-8},
}


def cases(choice: Choice) -> Iterator[Case]:
    """Both steps of each model on molecules, water and a small crystal.

    The large models leave the crystal out, and ESCN's the water, whose training step takes ten
    times that of the others. The large cases are small models on water.
    """
    for model, sizes in MODELS.items():
        for size in sizes:
            for graph in _graphs(model, size, choice):
                for step in STEPS:
                    yield _case(model, size, graph, step, choice)


def _graphs(model: str, size: str, choice: Choice) -> tuple[str, ...]:
    if choice.quick:
        return ("iron",) if size == "small" else ()
    if choice.large:
        return ("water",) if size == "small" else ()
    if size == "small":
        return ("iron", "threebpa", "water")
    return ("threebpa",) if model == "ESCN" else ("threebpa", "water")


def _case(model: str, size: str, graph: str, step: str, choice: Choice) -> Case:
    name, options = MODELS[model][size]

    def make(number: int, generator: torch.Generator) -> Inputs:
        data = _data(graph, choice.dtype)
        return Inputs({"positions": data.positions}, data)

    contestants: dict[str, Make] = {
        f"eqtp {backend}": partial(_eqtp, name, options, graph, step, backend)
        for backend in ("auto", "torch")
    }
    if model == "MACE":
        contestants["mace-torch"] = partial(_mace, options, graph, step)
    if model == "TensorNet":
        contestants["plain 3 x 3 matrices"] = partial(_plain_tensornet, options, graph, step)
        contestants["torchmd-net"] = partial(_torchmd_net, options, graph, step)
    data = _data(graph, choice.dtype)
    return Case(
        family="models",
        name=f"{model} {size}, {graph}: {step}",
        make=make,
        rows=len(data.edge_src),
        contestants=contestants,
        baseline="eqtp torch",
        sizes={"atoms": len(data.positions), "edges": len(data.edge_src)} | _shown(options),
        tasks=("forward",),
        forces=("positions",),
        dtype=choice.dtype,
        check_rows=len(data.edge_src),
        tolerances={"forward": TOLERANCES[choice.dtype][step]},
    )


def _shown(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, int) else str(value) for key, value in options.items()}


@cache
def _data(graph: str, dtype: torch.dtype) -> Any:
    from eqtp.models.training.data import from_ase

    structure = atoms(graph)
    return from_ase(structure, GRAPHS[graph][1], dtype=dtype)


def _hyperparameters(graph: str) -> dict[str, Any]:
    """The elements and mean number of neighbours of a graph; atoms alone have no energy."""
    data = _data(graph, torch.float64)
    elements = sorted(set(data.atomic_numbers.tolist()))
    return {
        "atomic_numbers": elements,
        "atomic_energies": [0.0] * len(elements),
        "avg_num_neighbors": len(data.edge_src) / len(data.positions),
        "r_max": GRAPHS[graph][1],
    }


def _eqtp(name: str, options: dict[str, Any], graph: str, step: str, backend: str) -> Contestant:
    import eqtp.models

    try:
        cls: Any = getattr(eqtp.models, name)
    except AttributeError as error:
        raise NotImplementedError(str(error)) from error
    dtype = torch.get_default_dtype()
    hyperparameters = _hyperparameters(graph) | options
    if name == "TensorNet":
        del hyperparameters["avg_num_neighbors"]
    torch.manual_seed(0)
    model = cls(**hyperparameters, backend=backend).to(dtype)
    exact = cls(**hyperparameters, backend="torch").to(dtype)
    exact.load_state_dict(model.state_dict())
    return _contestant(model, exact.double(), step)


def _mace(options: dict[str, Any], graph: str, step: str) -> Contestant:
    require("mace-torch")
    from eqtp.benchmarks.mace_torch import MaceTorch

    torch.manual_seed(0)
    model = MaceTorch(**_hyperparameters(graph), **options).to(torch.get_default_dtype())
    return _contestant(model, copy.deepcopy(model).double(), step)


def _plain_tensornet(options: dict[str, Any], graph: str, step: str) -> Contestant:
    from eqtp.benchmarks.tensornet_plain import PlainTensorNet
    from eqtp.models import TensorNet

    hyperparameters = _hyperparameters(graph) | options
    del hyperparameters["avg_num_neighbors"]
    torch.manual_seed(0)
    model = PlainTensorNet(TensorNet(**hyperparameters).to(torch.get_default_dtype()))
    return _contestant(model, copy.deepcopy(model).double(), step)


def _torchmd_net(options: dict[str, Any], graph: str, step: str) -> Contestant:
    require("torchmd-net")
    if graph != "threebpa":
        raise NotImplementedError("torchmd-net's wrapper here is for molecules, without a cell")
    from eqtp.benchmarks.tensornet import torchmd_net

    torch.manual_seed(0)
    changes = {"embedding_dimension": options["channels"]} if "channels" in options else {}
    exact, _ = torchmd_net(r_max=GRAPHS[graph][1], **changes)
    model = copy.deepcopy(exact).to(torch.get_default_dtype())
    return _contestant(model, exact, step)


def _contestant(model: nn.Module, exact: nn.Module, step: str) -> Contestant:
    run = _evaluate if step == "energy and forces" else _train
    about = f"{type(model).__name__}, {sum(map(Tensor.numel, model.parameters()))} parameters"

    def adapt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for one in (model, exact):
            one.to(tensors["positions"].device)
        return dict(tensors)

    return Contestant(partial(run, model), partial(run, exact), adapt, about=about)


def _at(data: Any, positions: Tensor) -> Any:
    """The structure at positions, in their dtype."""
    moved = copy.copy(data)
    moved.positions = positions.detach()
    for name in ("edge_shift", "cell"):
        moved[name] = data[name].to(positions.dtype)
    return moved


def _evaluate(model: Any, tensors: Mapping[str, Tensor], data: Any) -> Tensor:
    """Energies and forces in one vector."""
    model.eval()
    with torch.enable_grad():
        output = model(_at(data, tensors["positions"]))
    return torch.cat([output["energy"].flatten().double(), output["forces"].flatten().double()])


def _train(model: Any, tensors: Mapping[str, Tensor], data: Any) -> Tensor:
    """The gradients of energies and forces, both squared, in every parameter."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        output = model(_at(data, tensors["positions"]))
        loss = output["energy"].square().mean() + output["forces"].square().mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )
