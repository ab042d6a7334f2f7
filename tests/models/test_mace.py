"""MACE: symmetries, derivatives, hyperparameters, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

from eqtp.models import MACE
from eqtp.models.training.data import from_ase
from eqtp.so3 import rand_matrix

TOLERANCES = {
    "symmetry": 1e-10,  # relative; sums of a few thousand terms in float64
    "difference": 1e-6,  # of central differences with steps of 1e-4, in eV/Å
}
SETTINGS: dict[str, Any] = {
    "atomic_numbers": [1, 6, 8],
    "atomic_energies": [-13.6, -1030.0, -2041.0],
    "avg_num_neighbors": 6.0,
    "r_max": 4.0,
    "num_bessel": 4,
    "max_ell": 2,
    "correlation": 2,
    "hidden_irreps": "4x0e+4x1o",
    "mlp_irreps": "4x0e",
    "radial_mlp": (8,),
    "shift": 0.3,
    "scale": 0.7,
}


def make(**changes: Any) -> MACE:
    torch.manual_seed(0)
    return MACE(**{**SETTINGS, **changes}).double().eval()


def ethanol() -> Atoms:
    atoms: Atoms = molecule("CH3CH2OH")
    return atoms


def crystal() -> Atoms:
    atoms: Atoms = bulk("C", "diamond", a=3.6).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=1)
    return atoms


def run(model: MACE, atoms: Atoms, **options: bool) -> dict[str, Tensor]:
    output: dict[str, Tensor] = model(from_ase(atoms, model.r_max, dtype=torch.float64), **options)
    return output


def assert_close(a: Tensor, b: Tensor) -> None:
    scale = float(b.detach().abs().max())
    torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCES["symmetry"] * scale)


@pytest.mark.parametrize("hidden", ["4x0e", "4x0e+4x1o", "3x0e+3x1o+3x2e"])
@pytest.mark.parametrize("improper", [False, True])
def test_rotation_and_inversion(hidden: str, improper: bool) -> None:
    model, atoms = make(hidden_irreps=hidden), ethanol()
    rotation = rand_matrix() * (-1 if improper else 1)
    turned = atoms.copy()
    turned.positions = atoms.positions @ rotation.numpy().T
    before, after = run(model, atoms), run(model, turned)
    assert_close(after["node_energy"], before["node_energy"])
    assert_close(after["forces"], before["forces"] @ rotation.T)
    assert float(before["forces"].abs().max()) > 1e-3


def test_stress_turns_with_the_crystal() -> None:
    model, atoms = make(), crystal()
    rotation = rand_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.numpy().T)
    turned.positions = atoms.positions @ rotation.numpy().T
    before = run(model, atoms, compute_stress=True)["stress"]
    after = run(model, turned, compute_stress=True)["stress"]
    assert_close(after, rotation @ before @ rotation.T)


def test_permutation_and_batch() -> None:
    model, atoms, other = make(), ethanol(), crystal()
    order = torch.randperm(len(atoms))
    shuffled = run(model, atoms[order.tolist()])
    single, single_other = run(model, atoms), run(model, other)
    assert_close(shuffled["forces"], single["forces"][order])
    both = model(from_ase([atoms, other], model.r_max, dtype=torch.float64), compute_stress=False)
    assert_close(both["energy"], torch.cat([single["energy"], single_other["energy"]]))
    assert_close(both["forces"], torch.cat([single["forces"], single_other["forces"]]))


def test_supercell_has_the_energy_of_its_cells() -> None:
    model, atoms = make(), crystal()
    one = run(model, atoms, compute_stress=True)
    four = run(model, atoms.repeat((1, 2, 2)), compute_stress=True)
    assert_close(four["energy"], 4 * one["energy"])
    assert_close(four["stress"], one["stress"])


@pytest.mark.parametrize("structure", [ethanol, crystal])
def test_forces_are_differences_of_the_energy(structure: Callable[[], Atoms]) -> None:
    model, atoms = make(), structure()
    forces = run(model, atoms)["forces"]
    step = 1e-4
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(float(run(model, moved, compute_forces=False)["energy"].detach()))
        difference = -(energies[0] - energies[1]) / (2 * step)
        assert abs(float(forces[atom, axis]) - difference) < TOLERANCES["difference"]


def test_stress_is_a_difference_of_the_energy() -> None:
    model, atoms = make(), crystal()
    stress = run(model, atoms, compute_stress=True)["stress"][0]
    step = 1e-4
    for i, j in ((0, 0), (1, 2)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            energies.append(float(run(model, strained, compute_forces=False)["energy"].detach()))
        difference = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert abs(float(stress[i, j]) - difference) < TOLERANCES["difference"]


def test_atom_alone_and_no_edges() -> None:
    model = make()
    alone = run(model, Atoms("H"))
    far = run(model, Atoms("HO", [[0, 0, 0], [0, 0, 50.0]]))
    assert torch.equal(far["forces"], torch.zeros(2, 3))
    assert_close(far["node_energy"][:1], alone["node_energy"])


def test_energy_is_smooth_at_the_cutoff() -> None:
    model = make()

    def energy(distance: float) -> float:
        return float(run(model, Atoms("HO", [[0, 0, 0], [0, 0, distance]]))["energy"])

    beyond = energy(model.r_max + 1e-3)
    assert abs(energy(model.r_max - 1e-3) - beyond) < 1e-8
    assert abs(energy(0.5 * model.r_max) - beyond) > 1e-4


def test_force_loss_gradient() -> None:
    """The gradient of a force loss in every parameter, against differences of the loss."""
    model = make().train()
    data = from_ase(ethanol(), model.r_max, dtype=torch.float64)
    target = torch.randn(len(data.positions), 3)

    def loss() -> Tensor:
        output = model(data)
        error: Tensor = (output["forces"] - target).square().sum()
        error += 0.01 * output["energy"].sum()
        return error

    loss().backward()
    step = 1e-5
    for name, parameter in model.named_parameters():
        gradient, flat = parameter.grad, parameter.data.view(-1)
        assert gradient is not None, name
        index = int(gradient.abs().argmax())
        values = []
        for sign in (1, -1):
            flat[index] += sign * step
            values.append(float(loss().detach()))
            flat[index] -= sign * step
        difference = (values[0] - values[1]) / (2 * step)
        value = float(gradient.view(-1)[index])
        assert abs(difference - value) < 1e-5 * max(abs(value), 1.0), name


@pytest.mark.parametrize("num_interactions", [1, 3])
@pytest.mark.parametrize("correlation", [1, 3])
def test_depths(num_interactions: int, correlation: int) -> None:
    model = make(num_interactions=num_interactions, correlation=correlation)
    assert torch.isfinite(run(model, ethanol())["forces"]).all()
    assert len(model.interactions) == num_interactions


def test_both_bases_hold_the_same_functions() -> None:
    mace, independent = make(basis="mace"), make(basis="independent")
    state = mace.state_dict()
    for key, value in independent.state_dict().items():
        if "symmetric_contractions" not in key:
            value.copy_(state[key])
    ours: Any
    theirs: Any
    for ours, theirs in zip(independent.products, mace.products, strict=True):
        weights = theirs.symmetric_contractions.independent_weights()
        start = 0
        for weight in ours.symmetric_contractions.weights:
            stop = start + weight.shape[1]
            weight.data.copy_(weights[:, start:stop])
            start = stop
    assert_close(run(independent, ethanol())["forces"], run(mace, ethanol())["forces"])


def test_float32_energies_are_summed_in_float64() -> None:
    double, single = make(), make().float()
    atoms = ethanol()
    output = single(from_ase(atoms, 4.0, dtype=torch.float32))
    assert output["energy"].dtype == torch.float64
    assert output["forces"].dtype == torch.float32
    exact = run(double, atoms)
    assert abs(float(output["energy"] - exact["energy"])) < 1e-5  # of a total of 4,000 eV


def test_hyperparameters_rebuild_the_model() -> None:
    model = make(basis="mace")
    again = MACE(**model.hyperparameters).double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(run(again, ethanol())["energy"], run(model, ethanol())["energy"])
    assert set(model.weight_decay_parameters()) < set(model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_derivatives_can_be_differentiated_only_in_training(training: bool) -> None:
    output = run(make().train(training), ethanol())
    assert output["forces"].requires_grad == training
    assert output["energy"].requires_grad == training


def test_no_grad_still_gives_forces() -> None:
    with torch.no_grad():
        output = run(make(), ethanol())
    assert torch.equal(output["forces"], run(make(), ethanol())["forces"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_irreps": "4x1o"}, "must start with scalars"),
        ({"hidden_irreps": "4x0e+8x1o"}, "one multiplicity"),
        ({"hidden_irreps": "four"}, "irreps must look like"),
        ({"mlp_irreps": "4x1o"}, "mlp_irreps must be scalars"),
        ({"atomic_energies": [1.0]}, r"one energy per element \(3\)"),
        ({"atomic_numbers": [1, 1, 8]}, "each element once"),
        ({"r_max": 0.0}, "r_max must be positive"),
        ({"avg_num_neighbors": -1.0}, "avg_num_neighbors must be positive"),
        ({"correlation": 0}, "correlation must be at least 1"),
        ({"num_interactions": 0}, "num_interactions must be at least 1"),
    ],
)
def test_bad_hyperparameters(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_bad_structures() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"knows the elements \[1, 6, 8\].*has \[7\]"):
        run(model, molecule("NH3"))
    data = from_ase(ethanol(), model.r_max, dtype=torch.float64)
    data.positions[2, 1] = float("nan")
    with pytest.raises(ValueError, match="positions must be finite, atom 2"):
        model(data)
    data = from_ase(ethanol(), model.r_max, dtype=torch.float64)
    data.edge_src[0] = 99
    with pytest.raises(ValueError, match=r"edge_src must hold node indices in \[0, 9\)"):
        model(data)
    with pytest.raises(ValueError, match="zero volume"):
        run(model, ethanol(), compute_stress=True)


def test_from_mace_refuses_what_is_no_mace() -> None:
    with pytest.raises(NotImplementedError, match="model class 'Linear'"):
        MACE.from_mace(torch.nn.Linear(1, 1))
