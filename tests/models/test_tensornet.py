"""TensorNet: its equations, symmetries, derivatives, charges, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from potential_checks import (
    SETTINGS,
    assert_close,
    check_forces,
    check_mirror_images_differ,
    check_permutation_and_batch,
    check_rotation,
    check_stress,
    check_stress_turns_with_the_crystal,
    check_supercell,
    crystal,
    ethanol,
    run,
)

from eqtp.benchmarks.tensornet_plain import PlainTensorNet
from eqtp.cli import main
from eqtp.models import TensorNet, load, save
from eqtp.models.blocks.matrix_linear import MatrixLinear
from eqtp.models.calculator import Calculator
from eqtp.so3 import convert

TOLERANCES = {
    "definition": 1e-10,  # relative, the bar; 3e-15 measured
    "cutoff": 1e-9,  # eV/Å: forces of an atom 1e-6 Å inside the cutoff vanish with its square
}
MODEL_SETTINGS = SETTINGS["TensorNet"]


def make(**changes: Any) -> TensorNet:
    torch.manual_seed(0)
    model = TensorNet(**{**MODEL_SETTINGS, **changes}).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero or small at the start
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("charge", [None, (1.0, -2.0)])
def test_published_equations(group: str, charge: tuple[float, float] | None) -> None:
    """Energies, forces and the gradients of a loss on forces in every parameter."""
    model = make(group=group).train()
    atoms = [ethanol(), crystal()]
    covector = torch.randn(len(atoms[0]) + len(atoms[1]), 3, dtype=torch.float64)
    found = []
    for one in (model, PlainTensorNet(model).train()):
        output = run(one, atoms, charge)
        loss = (output["forces"] - covector).square().sum() + output["node_energy"].sin().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found.append([output["node_energy"], output["forces"], *gradients])
    for ours, expected in zip(*found, strict=True):
        assert float(expected.detach().abs().max()) > 1e-6
        assert_close(ours, expected, TOLERANCES["definition"])


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("improper", [False, True])
def test_rotation_and_inversion(group: str, improper: bool) -> None:
    model = make(group=group)
    if improper and group == "SO(3)":
        check_mirror_images_differ(model, ethanol(), least=1e-9, key="energy")
        return
    check_rotation(model, ethanol(), improper, least_force=1e-4)


def test_stress_turns_with_the_crystal() -> None:
    check_stress_turns_with_the_crystal(make())


def test_permutation_and_batch() -> None:
    check_permutation_and_batch(make())


def test_supercell_has_the_energy_of_its_cells() -> None:
    check_supercell(make())


@pytest.mark.parametrize("structure", [ethanol, crystal])
def test_forces_are_differences_of_the_energy(structure: Callable[[], Atoms]) -> None:
    check_forces(make(), structure(), charge=(1.0,))


def test_energy_and_forces_are_continuous_at_the_cutoff() -> None:
    model = make()
    apart = run(model, Atoms("CH", [[0, 0, 0], [0, 4.1, 0]]))["energy"]
    inside = run(model, Atoms("CH", [[0, 0, 0], [0, 4.0 - 1e-6, 0]]))
    assert float(abs(inside["energy"] - apart)) < TOLERANCES["cutoff"]
    near = run(model, Atoms("CH", [[0, 0, 0], [0, 4.0 - 1e-3, 0]]))
    assert float(near["forces"].abs().max()) < 1e-2
    assert float(inside["forces"].abs().max()) < 1e-3 * float(near["forces"].abs().max()) * 2


def test_stress_is_a_difference_of_the_energy() -> None:
    check_stress(make())


def test_an_atom_alone_has_an_energy_and_no_force() -> None:
    output = run(make(), Atoms("O", [[0.0, 0.0, 0.0]]))
    assert output["energy"].isfinite().all()
    assert not output["forces"].any()


def test_edges_along_the_polar_axis() -> None:
    output = run(make(), Atoms("CHH", [[0, 0, 0], [0, 1.1, 0], [0, -1.2, 0]]))
    assert output["forces"].isfinite().all()
    assert_close(output["forces"][:, [0, 2]] + 1, torch.ones(3, 2, dtype=torch.float64))


def test_charge_changes_the_energy_and_belongs_to_its_structure() -> None:
    model, atoms = make(), [ethanol(), crystal()]
    neutral, zero = run(model, atoms), run(model, atoms, (0.0, 0.0))
    charged = run(model, atoms, (0.0, 1.0))
    assert_close(zero["energy"], neutral["energy"])
    assert_close(charged["energy"][:1], neutral["energy"][:1])
    assert float((charged["energy"] - neutral["energy"])[1].abs()) > 1e-7
    with pytest.raises(ValueError, match=r"total_charge must have one number per structure \(2\)"):
        run(model, atoms, (1.0,))


def test_a_saved_model_is_the_same(tmp_path: Any) -> None:
    model = make(group="SO(3)")
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.hyperparameters == model.hyperparameters
    assert torch.equal(run(again, ethanol())["energy"], run(model, ethanol())["energy"])


def test_weight_decay_is_on_the_matrices_maps() -> None:
    decayed = make().weight_decay_parameters()
    assert len(decayed) == 1 + 2 * 2
    assert all(parameter.shape == (3, 6, 6) for parameter in decayed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atomic_energies": [1.0]}, r"one energy per element \(3\), got 1"),
        ({"atomic_numbers": [1, 1, 8]}, "list each element once"),
        ({"group": "E(3)"}, "group must be one of"),
        ({"channels": 1}, "channels must be at least 2, got 1"),
        ({"num_layers": -1}, "num_layers must be at least 0, got -1"),
        ({"r_max": 0.0}, "r_max must be positive"),
    ],
)
def test_bad_hyperparameters_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_backends_agree(backend: str) -> None:
    auto = run(make().train(), ethanol())
    other = run(make(backend=backend).train(), ethanol())
    for key in ("node_energy", "forces"):
        assert_close(other[key], auto[key])


def test_channel_mixing_is_three_diagrams() -> None:
    """w_I I + w_A A + w_S S = (w_A + w_S)/2 X + (w_S - w_A)/2 X^T + (w_I - w_S)/3 tr(X) E."""
    mix = MatrixLinear(1).double()
    w_i, w_a, w_s = mix.weight.detach().flatten().tolist()
    irreps = "0e+1o+2e"
    x = torch.randn(4, 9, dtype=torch.float64)
    matrix = convert(x, irreps, "sph", "mat").squeeze(1)
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * torch.eye(3)
    expected = (w_a + w_s) / 2 * matrix + (w_s - w_a) / 2 * matrix.mT + (w_i - w_s) / 3 * trace
    assert_close(convert(mix(x), irreps, "sph", "mat").squeeze(1), expected)


def test_the_calculator_takes_the_charge_and_has_the_models_forces() -> None:
    model, atoms = make(), ethanol()
    atoms.calc = Calculator(model)
    plain = atoms.get_potential_energy()
    atoms.info["charge"] = 2
    atoms.calc = Calculator(model)
    output = run(model, atoms)
    assert_close(torch.from_numpy(atoms.get_forces()), output["forces"])
    assert abs(atoms.get_potential_energy() - float(output["energy"])) < 1e-9
    assert abs(atoms.get_potential_energy() - plain) > 1e-7


def test_dynamics_conserve_the_energy() -> None:
    """Velocity Verlet without noise: forces are the gradient of the energy along a path."""
    atoms = ethanol()
    atoms.calc = Calculator(make(scale=0.3))
    atoms.set_velocities(0.02 * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    start = atoms.get_total_energy()
    dynamics = VelocityVerlet(atoms, timestep=0.25 * fs)
    kinetic, drift = [], []
    for _ in range(20):
        dynamics.run(2)
        kinetic.append(atoms.get_kinetic_energy())
        drift.append(abs(atoms.get_total_energy() - start))
    assert max(drift) < 0.02 * (max(kinetic) - min(kinetic))


def test_it_trains_from_a_config(tmp_path: Any) -> None:
    """`eqtp train`: data with charges, the loop, the error table, a model file that loads."""
    rng = np.random.default_rng(0)
    frames = []
    for index in range(6):
        atoms = Atoms("OH2", [[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        atoms.rattle(0.05, rng=rng)
        results = {"energy": -5.0, "forces": rng.standard_normal((3, 3))}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["charge"] = index % 2
        frames.append(atoms)
    write(tmp_path / "frames.xyz", frames)
    arguments = [
        "train",
        "3bpa-tensornet",
        "data.name=null",
        f"data.train_file={tmp_path / 'frames.xyz'}",
        "data.e0s=average",
        "model.channels=4",
        "model.num_rbf=4",
        "training.max_epochs=2",
        "training.accelerator=cpu",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert main(arguments) == 0
    (path,) = (tmp_path / "run").rglob("model.safetensors")
    trained = load(path, dtype=torch.float64)
    assert isinstance(trained, TensorNet)
    assert trained.hyperparameters["channels"] == 4
    assert run(trained, frames[0])["energy"].isfinite().all()
