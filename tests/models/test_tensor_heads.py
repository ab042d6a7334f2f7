from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from torch import Tensor

import eqtp
import eqtp.models
from eqtp.models import MACE
from eqtp.models.blocks.tensor_heads import parse_targets
from eqtp.models.training.data import from_ase
from eqtp.so3 import rand_matrix, tensor_to_irreps

# Sums of some hundred terms of order one; energies of -15 keV carry 2e-12 eV of rounding.
TOLERANCES = {"tensor": 1e-11, "energy": 1e-9, "forces": 1e-11}

TARGETS: dict[str, dict[str, Any]] = {
    "dipole": {"formula": "i", "unit": "e Å", "scale": 0.5},
    "polarizability": {"formula": "ij=ji", "scale": 2.0},
    "quadrupole": {"traceless": True},
    "charge": {"formula": "", "per": "atom"},
    "spin": {"formula": "i", "per": "atom"},
}


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(**options: Any) -> MACE:
    torch.manual_seed(0)
    hyperparameters: dict[str, Any] = {
        "atomic_numbers": [1, 6, 8],
        "atomic_energies": [-13.6, -1029.1, -2041.8],
        "avg_num_neighbors": 5.0,
        "r_max": 3.5,
        "hidden_irreps": "4x0e+4x1o+4x2e",
        "mlp_irreps": "4x0e",
        "radial_mlp": (8, 8),
        "max_ell": 2,
        "correlation": 2,
        "tensor_targets": TARGETS,
    }
    return MACE(**hyperparameters | options)


def turned(atoms: Atoms, rotation: Tensor) -> Atoms:
    moved: Atoms = atoms.copy()
    moved.positions = moved.positions @ np.asarray(rotation).T
    return moved


def turn(tensor: Tensor, rotation: Tensor) -> Tensor:
    for axis in range(1, tensor.ndim):
        tensor = torch.tensordot(tensor, rotation, dims=([axis], [1])).movedim(-1, axis)
    return tensor


@pytest.mark.parametrize("sign", [1, -1])
def test_targets_turn_with_the_molecule(sign: int) -> None:
    model = make().eval()
    frames = [molecule("CH3CH2OH"), molecule("H2O")]
    rotation = sign * rand_matrix()
    before = model(from_ase(frames, 3.5))
    after = model(from_ase([turned(atoms, rotation) for atoms in frames], 3.5))
    shapes = {name: tuple(before[name].shape) for name in TARGETS}
    assert shapes == {
        "dipole": (2, 3),
        "polarizability": (2, 3, 3),
        "quadrupole": (2, 3, 3),
        "charge": (12,),
        "spin": (12, 3),
    }
    for name in TARGETS:
        assert before[name].abs().max() > 1e-3
        error = (after[name] - turn(before[name], rotation)).abs().max()
        assert error < TOLERANCES["tensor"], name
    tensor_to_irreps(before["quadrupole"], "ij=ji", traceless=True, tolerance=1e-12)


def test_a_batch_has_the_targets_of_its_molecules_and_shifts_do_not_matter() -> None:
    model = make().eval()
    frames = [molecule("CH3CH2OH"), molecule("H2O")]
    together = model(from_ase(frames, 3.5))
    for graph, atoms in enumerate(frames):
        atoms.positions += 3.0
        alone = model(from_ase([atoms], 3.5))
        error = (together["dipole"][graph] - alone["dipole"][0]).abs().max()
        assert error < TOLERANCES["tensor"]


def test_energy_and_forces_are_those_without_targets_where_the_last_layer_agrees() -> None:
    """The heads read features; they change none that the energy is made of."""
    options = {"hidden_irreps": "4x0e", "num_interactions": 1}
    plain = make(tensor_targets=None, **options)
    model = make(tensor_targets={"charge": TARGETS["charge"]}, **options)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["tensor_heads.readouts.charge.0.linear.weight"]
    assert not unexpected
    data = from_ase([molecule("CH3CH2OH")], 3.5)
    one, other = plain.eval()(data), model.eval()(data)
    assert (one["energy"] - other["energy"]).abs().max() < TOLERANCES["energy"]
    assert (one["forces"] - other["forces"]).abs().max() < TOLERANCES["forces"]


def test_the_last_layer_has_only_what_the_targets_need() -> None:
    model = make(tensor_targets={"dipole": TARGETS["dipole"]})
    last: Any = model.products[-1]
    assert str(last.linear.irreps_out) == "4x0e+4x1o"
    plain: Any = make(tensor_targets=None).products[-1]
    assert str(plain.linear.irreps_out) == "4x0e"


def test_gradients_reach_every_layer_without_forces() -> None:
    model = make().train()
    out = model(from_ase([molecule("H2O")], 3.5), compute_forces=False)
    sum(out[name].square().sum() for name in TARGETS).backward()
    for layer in range(2):
        weight = model.get_parameter(f"interactions.{layer}.linear.weight")
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_models_with_targets_are_saved_and_loaded(tmp_path: Path) -> None:
    model = make().eval()
    eqtp.models.save(model, tmp_path / "model.safetensors")
    loaded = eqtp.models.load(tmp_path / "model.safetensors")
    assert loaded.hyperparameters == model.hyperparameters
    data = from_ase([molecule("H2O")], 3.5)
    for name in TARGETS:
        assert (loaded(data)[name] - model(data)[name]).abs().max() < TOLERANCES["tensor"]


def test_targets_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'dipole'.*'1x1o'.*'4x0e' lack 1o: add them to hidden"):
        make(hidden_irreps="4x0e", tensor_targets={"dipole": {"formula": "i"}})
    with pytest.raises(ValueError, match=r"'polarizability'.*lack 2e"):
        make(hidden_irreps="4x0e+4x1o", tensor_targets={"polarizability": {}})
    for targets, message in (
        ({"forces": {}}, "means nothing else, got 'forces'"),
        ({"my dipole": {}}, "got 'my dipole'"),
        ({"dipole": {"formul": "i"}}, "has the fields formula.*got formul"),
        ({"dipole": {"formula": "i", "per": "edge"}}, "'graph' or 'atom', got 'edge'"),
        ({"dipole": {"formula": "i", "scale": 0.0}}, "scale must be positive"),
        ({"dipole": {"formula": "ij=ik"}}, "hold the indices"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_targets(targets)


def test_the_calculator_has_the_targets_as_properties() -> None:
    model = make().eval()
    atoms = molecule("CH3CH2OH")
    expected = model(from_ase([atoms], 3.5))
    atoms.calc = eqtp.Calculator(model, device="cpu")
    dipole = torch.from_numpy(atoms.get_dipole_moment())
    assert (dipole - expected["dipole"][0]).abs().max() < TOLERANCES["tensor"]
    spin = torch.from_numpy(atoms.calc.get_property("spin", atoms))
    assert (spin - expected["spin"]).abs().max() < TOLERANCES["tensor"]
    atoms.calc = eqtp.Calculator(make(tensor_targets=None), device="cpu")
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()
