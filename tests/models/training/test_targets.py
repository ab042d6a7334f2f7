"""Training on tensor-valued labels: how they are read, and that a head learns what it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.io import write
from torch import Tensor

import eqtp.models
from eqtp.cli import main
from eqtp.models.blocks.tensor_heads import TensorTarget
from eqtp.models.training.config import parse_config
from eqtp.models.training.data import StructureDataset, from_ase, read
from eqtp.models.training.errors import error_sums, loss, metrics
from eqtp.models.training.targets import TargetConfig, find_targets
from eqtp.so3 import rand_matrix

# "read": labels go through a file of 8 decimals. "learned": share of the labels' RMS that is left
# on held-out molecules after 240 steps of a small model (measured: dipole 0.017, polarizability
# 0.029; an isotropic polarizability would leave 0.29).
TOLERANCES = {"read": 1e-7, "learned": 0.08, "reproduced": 1e-6}

DIPOLE = {"dipole": (TensorTarget(formula="i"), None)}
ALPHA = {"alpha": (TensorTarget(formula="ij=ji"), None)}


def water(seed: int) -> Atoms:
    """A distorted water molecule in a random orientation."""
    generator = np.random.default_rng(seed)
    positions = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    positions += 0.05 * generator.standard_normal((3, 3))
    torch.manual_seed(seed)
    return Atoms("OH2", positions @ np.asarray(rand_matrix(dtype=torch.float64)).T)


def energy_in_field(positions: Tensor, field: Tensor) -> Tensor:
    """Water in a field (V/Å), in eV: springs, charges on the hydrogens, polarisable bonds.

    E = sum over OH bonds b of [k (|b| - r0)^2 - q(|b|) b.F - 1/2 a(|b|) (F.F + 2 (b.F / |b|)^2)]
    """
    bonds = positions[1:] - positions[0]
    r = bonds.norm(dim=1)
    along = (bonds / r[:, None]) @ field
    induced = 0.05 * r * (field.square().sum() + 2 * along.square())
    charged = 0.4 * torch.exp(0.96 - r) * (bonds @ field)
    energy: Tensor = (5.0 * (r - 0.96).square() - charged - 0.5 * induced).sum()
    return energy


def labelled(seed: int) -> Atoms:
    """Water with -dE/dF and -d²E/dF² at F = 0, by autograd, as labels."""
    atoms = water(seed)
    positions = torch.from_numpy(atoms.positions)
    zero = torch.zeros(3, dtype=torch.float64)
    atoms.info["REF_dipole"] = -torch.func.grad(lambda f: energy_in_field(positions, f))(
        zero
    ).numpy()
    alpha = -torch.func.hessian(lambda f: energy_in_field(positions, f))(zero)
    atoms.info["alpha_tensor"] = alpha.numpy()
    atoms.info["REF_energy"] = float(energy_in_field(positions, zero))
    forces = -torch.func.grad(lambda x: energy_in_field(x, zero))(positions)
    atoms.arrays["REF_forces"] = forces.numpy()
    return atoms


CONFIG: dict[str, Any] = {
    "model": {
        "hidden_irreps": "8x0e+8x1o+8x2e",
        "max_ell": 2,
        "correlation": 2,
        "r_max": 3.0,
        "radial_mlp": [16],
    },
    "data": {
        "train_file": "train.xyz",
        "valid_fraction": 0.2,
        "test_files": {"hold-out": "test.xyz"},
        "targets": {
            "dipole": {"formula": "i", "unit": "e Å"},
            "polarizability": {"key": "alpha_tensor", "unit": "e Å²/V"},
        },
    },
    "training": {
        "max_epochs": 30,
        "batch_size": 5,
        "lr": 0.01,
        "accelerator": "cpu",
        "num_threads": 1,
        "ema_decay": 0.9,
        "scheduler": {"kind": "cosine"},
        "phases": [
            {
                "energy_weight": 0,
                "forces_weight": 0,
                "target_weights": {"dipole": 1.0, "polarizability": 10.0},
            }
        ],
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("train.xyz", [labelled(seed) for seed in range(50)])
    write("test.xyz", [labelled(seed) for seed in range(100, 110)])
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def test_heads_learn_the_derivatives_of_an_energy_with_respect_to_a_field(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Physics: -dE/dF and -d²E/dF² of a toy water, on held-out molecules in other orientations."""
    assert main(["train", "config.yaml", "run_dir=run"]) == 0
    output = capsys.readouterr().out
    assert "dipole RMSE [e Å]" in output
    assert "polarizability RMSE [e Å²/V]" in output
    assert "energies and forces: those of this model mean nothing" in output.replace("\n", " ")
    model: Any = eqtp.models.load("run/model.safetensors")
    test = [labelled(seed) for seed in range(100, 110)]
    out = model(from_ase(test, 3.0, dtype=torch.float64), compute_forces=False)
    left = {}
    for name, key in (("dipole", "REF_dipole"), ("polarizability", "alpha_tensor")):
        labels = torch.from_numpy(np.stack([atoms.info[key] for atoms in test]))
        error = (out[name].detach() - labels).square().mean().sqrt()
        left[name] = float(error / labels.square().mean().sqrt())
    assert max(left.values()) < TOLERANCES["learned"], left
    report = json.loads((folder / "run/report/errors.json").read_text())
    assert report["units"]["polarizability_rmse"] == "e Å²/V"
    assert (folder / "run/report/parity_dipole.png").is_file()
    trained = next(s for s in report["sets"] if s["name"] == "hold-out")["errors"]

    arguments = ["--target-key", "polarizability=alpha_tensor", "--json", "errors.json"]
    assert main(["evaluate", "run", "test.xyz", *arguments]) == 0
    again = json.loads(Path("errors.json").read_text())["sets"][0]["errors"]
    for key in ("dipole_rmse", "polarizability_mae"):
        assert again[key] == pytest.approx(trained[key], rel=TOLERANCES["reproduced"])
    bare = [water(seed) for seed in range(3)]
    for atoms in bare:
        atoms.info["REF_energy"] = 0.0
    write("bare.xyz", bare)  # targets without labels are left out
    assert main(["evaluate", "run", "bare.xyz", "--json", "errors.json"]) == 0
    assert "dipole_rmse" not in json.loads(Path("errors.json").read_text())["sets"][0]["errors"]
    write("some.xyz", [*bare, labelled(0)])
    assert main(["evaluate", "run", "some.xyz"]) == 2
    assert "frame 3 has one and frame 0 has not" in capsys.readouterr().err
    assert main(["evaluate", "run", "test.xyz", "--target-key", "alpha=x"]) == 2
    assert "NAME=KEY with a target of the model (dipole, pol" in capsys.readouterr().err


def test_energies_forces_and_targets_are_trained_together(folder: Path) -> None:
    phases = "training.phases=[{target_weights: {dipole: 1.0, polarizability: 1.0}}]"
    options = ["run_dir=run", "training.max_epochs=2", "data.e0s={H: 0.0, O: 0.0}", phases]
    assert main(["train", "config.yaml", *options]) == 0
    report = json.loads((folder / "run/report/errors.json").read_text())
    assert {"forces_rmse", "per_atom_rmse", "dipole_rmse"} <= set(report["sets"][0]["errors"])
    assert not any("mean nothing" in note for note in report["notes"])


def test_labels_are_found_and_shaped(tmp_path: Path) -> None:
    atoms = labelled(3)
    file = tmp_path / "one.xyz"
    write(file, atoms)
    targets = {
        "dipole": (TensorTarget(formula="i"), None),
        "polarizability": (TensorTarget(), "alpha_tensor"),
    }
    (frame,) = read(file, require=(), targets=targets)
    named = {name: (target, name) for name, (target, _) in targets.items()}
    structure = StructureDataset([frame], 3.0, dtype=torch.float64, targets=named)[0]
    for name, key in (("dipole", "REF_dipole"), ("polarizability", "alpha_tensor")):
        assert structure[name].shape[0] == 1
        error = np.abs(structure[name][0].numpy() - atoms.info[key]).max()
        assert error < TOLERANCES["read"]


def test_a_dipole_that_ase_moves_to_its_results_is_found(tmp_path: Path) -> None:
    atoms = water(0)
    atoms.info["dipole"] = np.array([0.1, 0.2, 0.3])
    write(tmp_path / "one.xyz", atoms)
    (frame,) = read(tmp_path / "one.xyz", require=(), targets=DIPOLE)
    assert find_targets(frame, DIPOLE)["dipole"].tolist() == [0.1, 0.2, 0.3]


def test_voigt_flat_and_per_atom_labels() -> None:
    atoms = water(0)
    alpha = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]])
    for value in (alpha, alpha.ravel(), np.array([1.0, 2.0, 3.0, 0.3, 0.2, 0.1])):
        atoms.info["alpha"] = value
        np.testing.assert_allclose(find_targets(atoms, ALPHA)["alpha"], alpha, atol=1e-14)
    atoms.info["charge"] = 2
    scalar = {"charge": (TensorTarget(formula=""), None)}
    assert find_targets(atoms, scalar)["charge"] == 2.0
    atoms.arrays["shielding"] = np.arange(27.0).reshape(3, 9)
    shielding = {"shielding": (TensorTarget(formula="ij", per="atom"), None)}
    assert find_targets(atoms, shielding)["shielding"].shape == (3, 3, 3)
    frames = [atoms, atoms]
    both = StructureDataset(frames, 3.0, targets=shielding)
    assert both[1].shielding.shape == (3, 3, 3)


def test_bad_labels_are_refused() -> None:
    atoms = water(0)
    with pytest.raises(ValueError, match=r"'dipole' must have a label under dipole or REF_dipole"):
        find_targets(atoms, DIPOLE)
    atoms.info["alpha"] = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"\(3, 3\), \(9,\) or \(6,\) \(Voigt\), got \(3, 2\)"):
        find_targets(atoms, ALPHA)
    atoms.info["alpha"] = np.triu(np.ones((3, 3)))
    with pytest.raises(ValueError, match="alpha: tensor must obey 'ij=ji'"):
        find_targets(atoms, ALPHA)
    atoms.info["alpha"] = np.full((3, 3), np.nan)
    with pytest.raises(ValueError, match="must be finite"):
        find_targets(atoms, ALPHA)
    atoms.info |= {"dipole": np.zeros(3), "REF_dipole": np.ones(3)}
    with pytest.raises(ValueError, match="must be unambiguous"):
        find_targets(atoms, DIPOLE)


def test_nearly_symmetric_labels_become_symmetric() -> None:
    atoms = water(0)
    atoms.info["alpha"] = np.diag([1.0, 2.0, 3.0]) + 1e-5 * np.triu(np.ones((3, 3)), 1)
    alpha = find_targets(atoms, ALPHA)["alpha"]
    assert np.abs(alpha - alpha.T).max() < 1e-15


def test_loss_and_metrics_of_a_target(make_config: Callable[..., Any]) -> None:
    """Mean over components times the weight, and RMSE in the labels' unit."""
    batch = from_ase([water(0), water(1)], 3.0, dtype=torch.float64)
    batch.dipole = torch.zeros(2, 3, dtype=torch.float64)
    output = {"energy": torch.zeros(2, dtype=torch.float64), "dipole": batch.dipole + 2.0}
    sums = error_sums(output, batch, ("dipole",))
    assert metrics(sums, ("dipole",)) == {"dipole_rmse": 2.0, "dipole_mae": 2.0}
    weights = {"target_weights": {"dipole": 3.0}, "energy_weight": 0, "forces_weight": 0}
    raw = {
        "data": {"train_file": "x", "targets": {"dipole": {"formula": "i"}}},
        "training": {"phases": [weights]},
    }
    phase = parse_config(raw, source="test").training.phases[0]
    assert loss(sums, phase, "mace", sums, ("dipole",)) == 12.0


def test_the_rms_of_the_labels_becomes_the_scale(folder: Path) -> None:
    from eqtp.models.training.prepare import prepare

    config = parse_config(yaml.safe_load(Path("config.yaml").read_text()), source="test")
    prepared = prepare(config)
    targets: Any = prepared.model.hyperparameters
    labels = torch.cat([structure.dipole for structure in prepared.train])
    assert targets["tensor_targets"]["dipole"]["scale"] == pytest.approx(
        float(labels.square().mean().sqrt())
    )
    assert TargetConfig(scale=2.0).target.scale == 2.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.targets.dipole.formul=i", "did you mean data.targets.*.formula"),
        ("data.targets.dipole.formula=ii", "different letters"),
        ("data.targets.forces.formula=i", "means nothing else, got 'forces'"),
        ("training.phases.0.target_weights.quadrupole=1", "and every weight a target"),
        ("training.phases.0.target_weights={dipole: 1}", "needs a weight in target_weights"),
        ("training.phases.0.target_weights={}", "got 0 for all"),
        ("model={name: TensorNet}", "data.targets needs model.name=MACE"),
        ("data.train_file=null", "name.*or train_file"),
    ],
)
def test_configs_that_make_no_sense_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(json.loads(json.dumps(CONFIG)), [override], source="test")


def test_named_sets_have_no_targets() -> None:
    raw = json.loads(json.dumps(CONFIG))
    raw["data"] = {"name": "3bpa-xtb", "targets": raw["data"]["targets"]}
    with pytest.raises(ValueError, match=r"needs train_file, the named set '3bpa-xtb'"):
        parse_config(raw, source="test")
