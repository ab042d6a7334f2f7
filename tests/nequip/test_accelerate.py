"""`eqtp.accelerate` on models of NequIP: the same numbers, the same modules."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import bulk, molecule
from torch import Tensor

pytest.importorskip("nequip", reason="needs an environment with nequip 0.16 or newer")

import eqtp
from eqtp.models.acceleration import e3nn as e3nn_swaps
from eqtp.models.acceleration import nequip as swaps
from eqtp.models.acceleration.swap import swaps_in

TOLERANCES = {
    "float64": 1e-10,  # the bar; two orders of summation leave 1e-14
    "gradients": 1e-9,  # of each parameter's largest gradient
    "float32": 5e-6,  # two roundings through three layers
}


@pytest.fixture(autouse=True)
def _fresh_tensors_are_nan() -> None:
    """Not here: e3nn's modules are TorchScript, which cannot compile the replaced torch.empty."""


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """As NequIP wants it; the model's own dtype is an argument of its builder."""
    from nequip.utils.global_state import set_global_state

    before = torch.get_default_dtype()
    set_global_state()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def build(**options: Any) -> Any:
    from nequip.model import NequIPGNNModel

    defaults: dict[str, Any] = {
        "seed": 0,
        "model_dtype": "float64",
        "r_max": 4.0,
        "type_names": ["H", "C", "O"],
        "num_layers": 3,
        "l_max": 2,
        "parity": True,
        "num_features": 4,
        "radial_mlp_width": 8,
        "avg_num_neighbors": 9.0,
        "per_type_energy_scales": 0.7,
        "per_type_energy_shifts": {"H": -1.0, "C": -2.0, "O": -3.0},
    }
    return NequIPGNNModel(**(defaults | options))


def observe(model: Any, atoms: Any) -> dict[str, Tensor]:
    from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase

    data = from_ase(atoms)
    types = torch.tensor([{1: 0, 6: 1, 8: 2}[z] for z in atoms.numbers.tolist()])
    data[AtomicDataDict.ATOM_TYPE_KEY] = types
    output: dict[str, Tensor] = model(compute_neighborlist_(data, r_max=4.0))
    return {key: output[key] for key in ("total_energy", "forces")}


def gradients(model: Any) -> list[Tensor]:
    forces = observe(model.train(), molecule("CH3CH2OH"))["forces"]
    slope = torch.linspace(-1, 1, forces.numel()).view_as(forces)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = (forces.square() * slope).sum()
    return list(torch.autograd.grad(loss, wanted, materialize_grads=True))


def relative(value: Tensor, reference: Tensor) -> float:
    scale = max(float(reference.detach().abs().max()), 1e-6)
    return float((value - reference).detach().abs().max()) / scale


@pytest.mark.parametrize("options", [{}, {"parity": False, "type_embed_num_features": 3}], ids=str)
def test_numbers_and_second_gradients_are_those_of_the_original(options: dict[str, Any]) -> None:
    model = build(**options)
    structures = [molecule("CH3CH2OH"), bulk("C", "diamond", a=3.6) * (2, 1, 1)]
    structures[1].rattle(0.1, seed=1)
    expected, slopes = [observe(model.eval(), atoms) for atoms in structures], gradients(model)
    state = copy.deepcopy(model.state_dict())
    report = eqtp.accelerate(model)
    assert [name for name in report.swapped if name.endswith("tp_scatter")]
    assert "forces float64" in report.differences
    for atoms, original in zip(structures, expected, strict=True):
        found = observe(model.eval(), atoms)
        assert all(relative(found[k], v) < TOLERANCES["float64"] for k, v in original.items())
    for mine, theirs in zip(gradients(model), slopes, strict=True):
        assert relative(mine, theirs) < TOLERANCES["gradients"]
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not list(swaps_in(eqtp.restore(model)))


def test_float32_models_are_checked_in_their_dtype() -> None:
    model = build(model_dtype="float32").eval()
    expected = observe(model, molecule("CH3CH2OH"))
    report = eqtp.accelerate(model)
    assert set(report.differences) == {"energy float32", "forces float32", "stress float32"}
    found = observe(model, molecule("CH3CH2OH"))
    assert relative(found["forces"], expected["forces"]) < TOLERANCES["float32"]


def test_it_is_a_modifier_of_nequips_own_kind() -> None:
    from nequip.model.modify_utils import get_all_modifiers, modify

    swaps.register()
    swaps.register()
    model = build()
    assert "enable_eqtp" in get_all_modifiers(model)
    modify(model, [{"modifier": "enable_eqtp", "check": False}])
    assert len([name for name, _ in swaps_in(model) if name.endswith("tp_scatter")]) == 3


def test_nequip_finds_the_modifier_by_itself(tmp_path: Path) -> None:
    """As after an installation: NequIP loads the entry points of `nequip.extension`."""
    root = Path(__file__).resolve().parents[2]
    section = (root / "pyproject.toml").read_text().split("nequip.extension")[1]
    folder = tmp_path / "sample-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: sample\nVersion: 1\n")
    line = section.splitlines()[1].replace('"', "")
    (folder / "entry_points.txt").write_text(f"[nequip.extension]\n{line}\n")
    program = (
        "import nequip; from nequip.nn._tp_scatter_base import TensorProductScatter as scatter; "
        "print(hasattr(scatter, 'enable_eqtp'))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == ["True"]


def test_a_wrong_sign_is_found_named_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    problem = e3nn_swaps.product_problem

    def planted(module: Any) -> Any:
        found = problem(module)
        wrong = dataclasses.replace(found.paths[0], coefficient=-found.paths[0].coefficient)
        return dataclasses.replace(found, paths=(wrong, *found.paths[1:]))

    monkeypatch.setattr(swaps, "product_problem", planted)
    model = build()
    with pytest.raises(ValueError, match="tp_scatter"):
        eqtp.accelerate(model)
    assert not list(swaps_in(model))
