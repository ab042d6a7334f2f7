"""What every potential must do: structures, and the checks that the tests of all models share.

Models are in float64 with a cutoff of 4 Å and know H, C and O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor, nn

from eqtp.models.training.data import from_ase
from eqtp.so3 import rand_matrix

R_MAX = 4.0
TOLERANCES = {
    "symmetry": 1e-10,  # relative; sums of a few thousand terms in float64
    "difference": 1e-6,  # of central differences with steps of 1e-4, in eV/Å
    "gradient": 1e-5,  # relative, of central differences with steps of 1e-5
}

_SPECIES: dict[str, Any] = {
    "atomic_numbers": [1, 6, 8],
    "atomic_energies": [-13.6, -1030.0, -2041.0],
    "r_max": R_MAX,
    "shift": 0.3,
    "scale": 0.7,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "MACE": {
        **_SPECIES,
        "avg_num_neighbors": 6.0,
        "num_bessel": 4,
        "max_ell": 2,
        "correlation": 2,
        "hidden_irreps": "4x0e+4x1o",
        "mlp_irreps": "4x0e",
        "radial_mlp": (8,),
    },
    "ESCN": {
        **_SPECIES,
        "avg_num_neighbors": 6.0,
        "lmax": 2,
        "m_max": 1,
        "channels": 4,
        "hidden_channels": 3,
        "num_layers": 2,
        "edge_channels": 8,
        "num_rbf": 8,
    },
    "TensorNet": {**_SPECIES, "channels": 6, "num_rbf": 7},
}
"""Small models of every class."""


def ethanol() -> Atoms:
    """A molecule without mirror plane."""
    atoms: Atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=3)
    return atoms


def crystal() -> Atoms:
    """Atoms that are their own neighbours' images."""
    atoms: Atoms = bulk("C", "diamond", a=3.6).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=1)
    return atoms


def run(
    model: Any,
    atoms: Atoms | Sequence[Atoms],
    charge: Sequence[float] | None = None,
    **options: bool,
) -> dict[str, Tensor]:
    """What a model says of structures."""
    data = from_ase(atoms, R_MAX, dtype=torch.float64)
    if charge is not None:
        data.total_charge = torch.tensor(charge)
    output: dict[str, Tensor] = model(data, **options)
    return output


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Equal to rounding, relative to the largest."""
    relative = TOLERANCES["symmetry"] if tolerance is None else tolerance
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * scale)


def turned(atoms: Atoms, rotation: Tensor) -> Atoms:
    """The same structure and cell, turned."""
    there: Atoms = atoms.copy()
    there.set_cell(atoms.cell.array @ rotation.numpy().T)
    there.positions = atoms.positions @ rotation.numpy().T
    return there


def check_rotation(
    model: Any, atoms: Atoms, improper: bool = False, least_force: float = 1e-3
) -> None:
    """Energies stay and forces turn with the structure, and the forces are not zero."""
    rotation = rand_matrix() * (-1 if improper else 1)
    before, after = run(model, atoms), run(model, turned(atoms, rotation))
    assert float(before["forces"].abs().max()) > least_force
    assert_close(after["node_energy"], before["node_energy"])
    assert_close(after["forces"], before["forces"] @ rotation.T)


def check_mirror_images_differ(model: Any, atoms: Atoms, least: float, key: str) -> None:
    """The energies, or the atoms' energies, of a structure and its mirror image."""
    before, after = run(model, atoms), run(model, turned(atoms, -rand_matrix()))
    assert float((after[key] - before[key]).abs().max()) > least


def check_stress_turns_with_the_crystal(model: Any) -> None:
    atoms, rotation = crystal(), rand_matrix()
    before = run(model, atoms, compute_stress=True)["stress"]
    after = run(model, turned(atoms, rotation), compute_stress=True)["stress"]
    assert_close(after, rotation @ before @ rotation.T)


def check_permutation_and_batch(model: Any) -> None:
    """The order of atoms does not matter, nor what else is in the batch: a lone atom, too."""
    atoms, other = ethanol(), crystal()
    order = torch.randperm(len(atoms))
    single, single_other = run(model, atoms), run(model, other)
    assert_close(run(model, atoms[order.tolist()])["forces"], single["forces"][order])
    both, alone = run(model, [atoms, Atoms("H"), other]), run(model, Atoms("H"))
    for key in ("energy", "forces"):
        assert_close(both[key], torch.cat([single[key], alone[key], single_other[key]]))


def check_supercell(model: Any) -> None:
    """It has the energy of its cells, and their stress."""
    one = run(model, crystal(), compute_stress=True)
    four = run(model, crystal().repeat((1, 2, 2)), compute_stress=True)
    assert_close(four["energy"], 4 * one["energy"])
    assert_close(four["stress"], one["stress"])


def check_forces(model: Any, atoms: Atoms, charge: Sequence[float] | None = None) -> None:
    """They are differences of the energy."""
    forces, step = run(model, atoms, charge)["forces"], 1e-4
    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            output = run(model, moved, charge, compute_forces=False)
            energies.append(float(output["energy"].detach()))
        difference = -(energies[0] - energies[1]) / (2 * step)
        assert abs(float(forces[atom, axis]) - difference) < TOLERANCES["difference"]


def check_stress(model: Any) -> None:
    """It is a difference of the energy."""
    atoms, step = crystal(), 1e-4
    stress = run(model, atoms, compute_stress=True)["stress"][0]
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


def check_atom_alone(model: Any) -> None:
    """It has an energy, the same beside one that is far away, and no force."""
    alone = run(model, Atoms("H"))
    far = run(model, Atoms("HO", [[0, 0, 0], [0, 0, 50.0]]))
    assert alone["energy"].isfinite().all()
    assert torch.equal(far["forces"], torch.zeros(2, 3))
    assert_close(far["node_energy"][:1], alone["node_energy"])


def check_pair_at_the_cutoff(model: Any, step: float, tolerance: float) -> None:
    """Its energy goes to that of two atoms apart, from which it differs at shorter distances."""
    near, inside, outside = (
        float(run(model, Atoms("HO", [[0, 0, 0], [0, 0, distance]]))["energy"])
        for distance in (0.5 * R_MAX, R_MAX - step, R_MAX + step)
    )
    assert abs(inside - outside) < tolerance
    assert abs(near - outside) > 1e-4


def check_parameter_gradients(model: Any, atoms: Atoms) -> None:
    """The gradient of a force loss in every parameter, against differences of the loss."""
    model.train()
    data = from_ase(atoms, R_MAX, dtype=torch.float64)
    target = torch.randn(len(data.positions), 3)

    def loss() -> Tensor:
        output = model(data)
        error: Tensor = (output["forces"] - target).square().sum()
        error += 0.01 * output["energy"].sum()
        return error

    check_loss_gradients(loss, model, TOLERANCES["gradient"])


def check_loss_gradients(loss: Callable[[], Tensor], module: nn.Module, tolerance: float) -> None:
    """The gradient of a loss in the largest element of every parameter against differences."""
    loss().backward()
    step = 1e-5
    for name, parameter in module.named_parameters():
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
        assert abs(difference - value) < tolerance * max(abs(value), 1.0), name


def check_differentiable(model: Any, training: bool) -> None:
    """Derivatives can be differentiated in training, and only there."""
    output = run(model.train(training), ethanol())
    assert output["forces"].requires_grad == training
    assert output["energy"].requires_grad == training
