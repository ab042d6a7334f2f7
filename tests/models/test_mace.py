"""MACE: symmetries, derivatives, hyperparameters, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from potential_checks import (
    SETTINGS,
    assert_close,
    check_atom_alone,
    check_differentiable,
    check_forces,
    check_pair_at_the_cutoff,
    check_parameter_gradients,
    check_permutation_and_batch,
    check_rotation,
    check_stress,
    check_stress_turns_with_the_crystal,
    check_supercell,
    crystal,
    ethanol,
    run,
)
from torch_geometric.data import Batch, Data

from eqtp.models import MACE
from eqtp.models.training.data import from_ase

MODEL_SETTINGS = SETTINGS["MACE"]


def make(**changes: Any) -> MACE:
    torch.manual_seed(0)
    return MACE(**{**MODEL_SETTINGS, **changes}).double().eval()


@pytest.mark.parametrize("hidden", ["4x0e", "4x0e+4x1o", "3x0e+3x1o+3x2e"])
@pytest.mark.parametrize("improper", [False, True])
def test_rotation_and_inversion(hidden: str, improper: bool) -> None:
    check_rotation(make(hidden_irreps=hidden), ethanol(), improper)


def test_stress_turns_with_the_crystal() -> None:
    check_stress_turns_with_the_crystal(make())


def test_permutation_and_batch() -> None:
    check_permutation_and_batch(make())


def test_supercell_has_the_energy_of_its_cells() -> None:
    check_supercell(make())


@pytest.mark.parametrize("structure", [ethanol, crystal])
def test_forces_are_differences_of_the_energy(structure: Callable[[], Atoms]) -> None:
    check_forces(make(), structure())


def test_stress_is_a_difference_of_the_energy() -> None:
    check_stress(make())


def test_atom_alone_and_no_edges() -> None:
    check_atom_alone(make())


def test_energy_is_smooth_at_the_cutoff() -> None:
    check_pair_at_the_cutoff(make(), step=1e-3, tolerance=1e-8)


def test_force_loss_gradient() -> None:
    check_parameter_gradients(make(), ethanol())


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
    check_differentiable(make(), training)


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
    with pytest.raises(ValueError, match=r"positions must be finite, got .*nan.* for atom 2"):
        model(data)
    data = from_ase(ethanol(), model.r_max, dtype=torch.float64)
    data.edge_src[0] = 99
    with pytest.raises(ValueError, match=r"edge_src must hold node indices in \[0, 9\)"):
        model(data)
    with pytest.raises(ValueError, match="zero volume"):
        run(model, ethanol(), compute_stress=True)


def test_data_of_another_dtype() -> None:
    model = make()
    with pytest.raises(TypeError, match=r"model's dtype.*float64.*got torch.float32.*\.to\(\)"):
        model(from_ase(ethanol(), model.r_max, dtype=torch.float32))


def test_batches_of_plain_data_must_be_renumbered() -> None:
    model = make()
    one = from_ase(ethanol(), model.r_max, dtype=torch.float64)
    plain = Data(**one.to_dict())
    model(plain)
    with pytest.raises(ValueError, match="must count the atoms of all structures"):
        model(Batch.from_data_list([plain, plain]))


def test_from_mace_refuses_what_is_no_mace() -> None:
    with pytest.raises(NotImplementedError, match="model class 'Linear'"):
        MACE.from_mace(torch.nn.Linear(1, 1))
