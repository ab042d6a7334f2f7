from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule
from torch import Tensor, nn

import eqtp.models
from eqtp.models import MACE
from eqtp.models.blocks.path_gates import (
    explain_gates,
    gate_paths,
    path_gates,
    prune_paths,
)
from eqtp.models.training.data import from_ase
from eqtp.nn.explanation import flops_per_row

# Energies of -15 keV carry 2e-12 eV of rounding; forces of 1 eV/Å, sums of some hundred terms.
TOLERANCES = {"energy": 1e-9, "forces": 1e-11, "share": 0.7}


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def model() -> MACE:
    torch.manual_seed(0)
    return MACE(
        atomic_numbers=[1, 6, 8],
        atomic_energies=[-13.6, -1029.1, -2041.8],
        avg_num_neighbors=5.0,
        r_max=3.5,
        hidden_irreps="4x0e+4x1o+4x2e",
        mlp_irreps="4x0e",
        radial_mlp=(8, 8),
        max_ell=3,
        correlation=2,
    )


@pytest.fixture
def data() -> Any:
    return from_ase([molecule("CH3CH2OH"), molecule("H2O")], r_max=3.5)


def gated(model: MACE, keep: float = 0.5) -> MACE:
    gates = gate_paths(model, keep, random_steps=4, top_steps=4)
    for gate in gates:
        nn.init.normal_(gate.scores)
    return model


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert (one["energy"] - other["energy"]).abs().max() < TOLERANCES["energy"]
    assert (one["forces"] - other["forces"]).abs().max() < TOLERANCES["forces"]


def test_freezing_and_pruning_change_no_number(model: MACE, data: Any) -> None:
    before = model(data)
    model = gated(model).eval()
    dense = model(data)
    assert (dense["forces"] - before["forces"]).abs().max() > 1e-3
    for gate in path_gates(model):
        phases = [gate.phase]  # evaluated with the highest scores
        gate.set_step(8)
        assert [*phases, gate.phase] == ["random", "frozen"]
    assert_same(model(data), dense)
    pruned = prune_paths(model)
    assert not path_gates(pruned)
    assert_same(pruned(data), dense)
    assert path_gates(model)  # the original keeps its gates


def test_the_pruned_model_is_smaller(model: MACE) -> None:
    """What is left out: columns of the radial network, blocks of messages, rows of the map."""
    pruned = prune_paths(gated(model).eval())
    dense: Any = model.interactions[1]
    small: Any = pruned.interactions[1]
    kept = pruned.hyperparameters["paths"][1]
    assert len(kept) == math.ceil(0.5 * len(dense.conv_tp.problem.paths))
    assert small.conv_tp.weight_numel == 4 * len(kept)
    assert small.conv_tp_weights.weights[-1].shape == (8, 4 * len(kept))
    assert small.linear.weight_numel == 16 * len(kept)
    assert small.conv_tp.irreps_out.dim < dense.conv_tp.irreps_out.dim
    share = flops_per_row(small.conv_tp.problem) / flops_per_row(dense.conv_tp.problem)
    assert share < TOLERANCES["share"]
    assert f"{100 * share:.0f} %" in explain_gates(model)


def test_the_first_layer_has_a_path_per_degree_and_keeps_all(model: MACE) -> None:
    gates = gate_paths(model, keep=0.5)
    assert len(gates) == 1
    assert model.interactions[0].gate is None
    assert model.interactions[1].gate is gates[0]


def test_pruned_models_are_saved_and_loaded(model: MACE, data: Any, tmp_path: Path) -> None:
    model = gated(model)
    with pytest.raises(TypeError, match=r"save eqtp.models.prune_paths\(model\)"):
        eqtp.models.save(model, tmp_path / "gated.safetensors")
    pruned = prune_paths(model).eval()
    eqtp.models.save(pruned, tmp_path / "pruned.safetensors")
    loaded = eqtp.models.load(tmp_path / "pruned.safetensors")
    assert loaded.hyperparameters == pruned.hyperparameters | {"backend": "auto"}
    assert_same(loaded(data), pruned(data))


@pytest.mark.parametrize("step", [0, 5, 8])
def test_scores_learn_from_the_forces_in_every_phase(model: MACE, data: Any, step: int) -> None:
    model = gated(model).train()
    (gate,) = path_gates(model)
    gate.set_step(step)
    model(data)["forces"].square().sum().backward()
    assert gate.scores.grad is not None
    selected = list(gate.selected())
    assert (gate.scores.grad[selected] != 0).all()
    others = [path for path in range(len(gate.scores)) if path not in selected]
    assert (gate.scores.grad[others] == 0).all()


def test_gradients_are_the_same_before_and_after_freezing(model: MACE, data: Any) -> None:
    """The pruned kernels give the weights that stay the gradients of the dense ones."""
    model = gated(model).train()
    (gate,) = path_gates(model)
    gradients = []
    for step in (5, 8):  # the highest scores in both
        gate.set_step(step)
        model.zero_grad()
        out = model(data)
        (out["forces"].square().sum() + out["energy"].sum()).backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    for name, dense in gradients[0].items():
        error = (gradients[1][name] - dense).abs().max()
        assert error < 1e-12 * max(float(dense.abs().max()), 1.0), name


def test_gates_travel_in_the_state_dict(model: MACE, data: Any) -> None:
    model = gated(model).eval()
    for gate in path_gates(model):
        gate.set_step(8)
    state = model.state_dict()
    other = MACE(**model.hyperparameters)
    gate_paths(other, 0.5, random_steps=4, top_steps=4)
    other.load_state_dict(state)
    assert [gate.phase for gate in path_gates(other)] == ["frozen"]
    assert_same(other.eval()(data), model(data))


def test_what_cannot_be_gated_is_refused(model: MACE) -> None:
    with pytest.raises(TypeError, match="got a Linear"):
        gate_paths(nn.Linear(1, 1))
    gate_paths(model)
    with pytest.raises(ValueError, match="gated once"):
        gate_paths(model)
    with pytest.raises(ValueError, match="gated once"):
        gate_paths(prune_paths(model))
    with pytest.raises(ValueError, match=r"one entry per layer \(2\), got 1"):
        MACE(**{**model.hyperparameters, "paths": [None]})
