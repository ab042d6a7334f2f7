"""`MACE.from_mace` against mace-torch 0.3.16: same numbers, same gradients, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor, nn

pytest.importorskip("mace", reason="needs the environment .venv-mace of `make test`")

from eqtp.benchmarks.mace_torch import MaceTorch
from eqtp.irreps import Irreps
from eqtp.models import MACE
from eqtp.models.training.data import from_ase

pytestmark = pytest.mark.mace

TOLERANCES = {
    "value": 1e-10,  # the issue's bar; float64 rounding through two layers leaves 1e-13
    "gradient": 1e-9,  # the issue's bar, of each parameter's largest gradient
    "float32": 2e-5,  # float32 rounding (6e-8) through sums of 90 neighbours and cubes
}

HIDDEN = ["32x0e", "32x0e+32x1o", "16x0e+16x1o+16x2e"]
R_MAX = 5.0
ELEMENTS = {1: -13.57, 6: -1029.49, 7: -1484.87, 8: -2041.84}


@pytest.fixture(autouse=True)
def _fresh_tensors_are_nan() -> None:
    """Not here: mace-torch is TorchScript, which cannot compile the replaced torch.empty."""


@cache
def mace_model(hidden_irreps: str) -> MaceTorch:
    torch.manual_seed(7)
    return small_mace(hidden_irreps=hidden_irreps, max_ell=3, correlation=3)


def small_mace(**options: Any) -> MaceTorch:
    defaults: dict[str, Any] = {
        "atomic_numbers": list(ELEMENTS),
        "atomic_energies": list(ELEMENTS.values()),
        "avg_num_neighbors": 11.3,
        "r_max": R_MAX,
        "hidden_irreps": "4x0e+4x1o",
        "max_ell": 2,
        "correlation": 2,
        "scale": 0.8,
        "shift": -0.2,
    }
    return MaceTorch(**(defaults | options))


def rattled(atoms: Atoms, seed: int) -> Atoms:
    atoms.positions += 0.08 * np.random.default_rng(seed).standard_normal(atoms.positions.shape)
    return atoms


def molecules() -> Any:
    """Three molecules of different size and elements, one of them an atom without neighbours."""
    names = ["CH3CH2OH", "C5H5N", "O"]
    return from_ase([rattled(molecule(name), seed) for seed, name in enumerate(names)], R_MAX)


def crystal() -> Any:
    """A sheared cell smaller than the cutoff: atoms are neighbours of their own images."""
    atoms = bulk("C", "diamond", a=3.6) * (2, 1, 1)
    atoms.numbers = [6, 7, 8, 6]
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.05 * np.eye(3, k=1)), scale_atoms=True)
    return from_ase([rattled(atoms, 3), rattled(bulk("C", "diamond", a=3.5), 4)], R_MAX)


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("hidden_irreps", HIDDEN)
@pytest.mark.parametrize("structures", [molecules, crystal])
def test_energies_forces_and_stress_are_those_of_mace_torch(
    hidden_irreps: str, structures: Callable[[], Any]
) -> None:
    reference = mace_model(hidden_irreps)
    model = MACE.from_mace(reference.mace)
    data = structures()
    stress = structures is crystal
    expected = reference.eval()(data, compute_stress=stress)
    got = model.eval()(data, compute_stress=stress)
    assert set(got) == set(expected)
    for key, value in expected.items():
        assert relative(got[key], value) < TOLERANCES["value"], key
    # The atomic energies make up nearly all of the energy: hold the learned part alone too.
    isolated = torch.tensor([ELEMENTS[int(z)] for z in data.atomic_numbers])
    node_energy = [output["node_energy"] - isolated for output in (got, expected)]
    assert relative(*node_energy) < TOLERANCES["value"]


@pytest.mark.parametrize("hidden_irreps", HIDDEN)
def test_gradients_of_a_force_loss_are_those_of_mace_torch(hidden_irreps: str) -> None:
    reference = mace_model(hidden_irreps)
    model = MACE.from_mace(reference.mace)
    data = molecules()
    target = torch.randn_like(data.positions)
    expected = force_loss_gradients(reference, data, target)
    got = force_loss_gradients(model, data, target)
    names = {name: f"mace.{name_in_mace(name, correlation=3)}" for name in got}
    assert sorted(names.values()) == sorted(expected)
    for name, mace_name in names.items():
        assert got[name].shape == expected[mace_name].shape, name
        assert relative(got[name], expected[mace_name]) < TOLERANCES["gradient"], name


def name_in_mace(name: str, correlation: int) -> str:
    """mace-torch has a module per block of the result, and counts the degrees from the top."""
    product, found, index = name.partition(".symmetric_contractions.weights.")
    if not found:
        return name
    block, degree = divmod(int(index), correlation)
    order = correlation - 1 - degree
    weight = "weights_max" if order == 0 else f"weights.{order - 1}"
    return f"{product}.symmetric_contractions.contractions.{block}.{weight}"


def force_loss_gradients(model: nn.Module, data: Any, target: Tensor) -> dict[str, Tensor]:
    model.train()
    loss = (model(data)["forces"] - target).square().mean()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def test_a_float32_model_stays_float32() -> None:
    reference = mace_model("32x0e+32x1o")
    data = molecules()
    expected = reference.eval()(data)["forces"]
    single = small_mace(hidden_irreps="32x0e+32x1o", max_ell=3, correlation=3)
    single.load_state_dict(reference.state_dict())
    model = MACE.from_mace(single.mace.float()).eval()
    data.positions, data.edge_shift = data.positions.float(), data.edge_shift.float()
    got = model(data)
    assert got["forces"].dtype == torch.float32
    assert relative(got["forces"].double(), expected) < TOLERANCES["float32"]


def blocks(name: str) -> Any:
    from mace.modules import interaction_classes

    return interaction_classes[name]


def bias_readout() -> Any:
    from mace.modules.blocks import NonLinearBiasReadoutBlock

    return NonLinearBiasReadoutBlock


TWO_HEADS: dict[str, Any] = {
    "heads": ["one", "two"],
    "atomic_energies": [list(ELEMENTS.values())] * 2,
    "scale": [0.8, 0.7],
    "shift": [0.0, 0.1],
}
SPECS = {"charge": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}}
UNSUPPORTED: dict[str, Callable[[], dict[str, Any]]] = {
    "pair_repulsion": lambda: {"pair_repulsion": True},
    "AgnesiTransform": lambda: {"distance_transform": "Agnesi"},
    "SoftTransform": lambda: {"distance_transform": "Soft"},
    "GaussianBasis": lambda: {"radial_type": "gaussian"},
    "apply_cutoff": lambda: {"apply_cutoff": False},
    "multi-head": lambda: TWO_HEADS,
    "RealAgnosticDensityInteractionBlock": lambda: {
        "interaction_cls_first": blocks("RealAgnosticDensityInteractionBlock")
    },
    "RealAgnosticDensityResidualInteractionBlock": lambda: {
        "interaction_cls": blocks("RealAgnosticDensityResidualInteractionBlock")
    },
    "RealAgnosticResidualNonLinearInteractionBlock": lambda: {
        "interaction_cls": blocks("RealAgnosticResidualNonLinearInteractionBlock")
    },
    "RealAgnosticInteractionBlock": lambda: {
        "interaction_cls_first": blocks("RealAgnosticInteractionBlock")
    },
    "use_agnostic_product": lambda: {"use_agnostic_product": True},
    "use_so3": lambda: {"use_so3": True},
    "use_last_readout_only": lambda: {"use_last_readout_only": True},
    "keep_last_layer_irreps": lambda: {"keep_last_layer_irreps": True},
    "NonLinearBiasReadoutBlock": lambda: {"readout_cls": bias_readout()},
    "edge_irreps": lambda: {"edge_irreps": Irreps("2x0e+2x1o")},
    "embedding_specs": lambda: {"embedding_specs": SPECS},
    "activation": lambda: {"gate": torch.tanh},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    model = small_mace(**UNSUPPORTED[name]())
    with pytest.raises(NotImplementedError, match=name):
        MACE.from_mace(model.mace)


@pytest.mark.parametrize("name", ["MACE", "AtomicDipolesMACE", "Linear"])
def test_other_classes_are_refused_by_name(name: str) -> None:
    model = small_mace().mace
    model.__class__ = type(name, (type(model),), {})
    with pytest.raises(NotImplementedError, match=rf"'{name}'.*ScaleShiftMACE"):
        MACE.from_mace(model)


def test_numbers_that_differ_are_found_before_the_model_is_returned() -> None:
    model = small_mace().mace
    scale_shift = model.scale_shift.forward
    model.scale_shift.forward = lambda x, heads: scale_shift(x, heads) + 1e-3 * x
    with pytest.raises(ValueError, match="mace-torch"):
        MACE.from_mace(model)


def test_attributes_that_old_checkpoints_lack_may_be_missing() -> None:
    reference = small_mace()
    for name in ["heads", "apply_cutoff", "use_reduced_cg", "edge_irreps", "use_so3"]:
        delattr(reference.mace, name)
    data = molecules()
    got = MACE.from_mace(reference.mace).eval()(data)["forces"]
    assert relative(got, reference.eval()(data)["forces"]) < TOLERANCES["value"]


def test_the_coupling_tensors_are_read_not_their_flag() -> None:
    """Without cuequivariance mace-torch ignores use_reduced_cg=True, its default, but keeps it."""
    reference = small_mace(use_reduced_cg=True)
    assert reference.mace.use_reduced_cg
    data = molecules()
    got = MACE.from_mace(reference.mace).eval()(data)["forces"]
    assert relative(got, reference.eval()(data)["forces"]) < TOLERANCES["value"]
