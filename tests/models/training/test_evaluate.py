"""`eqtp evaluate`: a model file or run folder on labelled frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

import eqtp.models
from eqtp.cli import main
from eqtp.models.training.data import from_ase


@pytest.fixture
def folder(tmp_path: Path, frames: Callable[[int], list[Atoms]]) -> Path:
    """A folder with a small MACE and labelled frames."""
    model = eqtp.models.MACE(
        atomic_numbers=[1, 8],
        atomic_energies=[-1.0, -2.0],
        avg_num_neighbors=2.0,
        hidden_irreps="4x0e+4x1o",
        max_ell=1,
        correlation=2,
        r_max=3.0,
        radial_mlp=(8,),
    )
    eqtp.models.save(model.double(), tmp_path / "model.safetensors")
    write(tmp_path / "water.xyz", frames(7))
    return tmp_path


def test_table_json_and_plots_hold_the_errors(
    folder: Path, frames: Callable[[int], list[Atoms]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(folder / "model.safetensors"), str(folder / "water.xyz")]
    options = ["--plots", str(folder / "plots"), "--json", str(folder / "errors.json")]
    assert main([*arguments, *options, "--batch-size", "3", "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    (found,) = json.loads((folder / "errors.json").read_text())["sets"]

    model = eqtp.models.load(folder / "model.safetensors")
    energies, forces = [], []
    for atoms in frames(7):
        predicted = model(from_ase(atoms, 3.0))
        energies.append(float(predicted["energy"]) - atoms.get_potential_energy())
        forces.append(predicted["forces"].detach().numpy() - atoms.get_forces())
    # The file holds eight decimals of positions and labels.
    expected = 1000 * np.sqrt(np.mean(np.square(energies)))
    assert found["errors"]["energy_rmse"] == pytest.approx(expected, rel=1e-5)
    expected = 1000 * np.mean(np.abs(forces))
    assert found["errors"]["forces_mae"] == pytest.approx(expected, rel=1e-5)
    assert found["num_frames"] == 7
    assert f"{found['errors']['forces_rmse']:.2f}" in output
    assert (folder / "plots/parity_forces.png").is_file()
    assert (folder / "plots/parity_energy.png").is_file()


def test_a_run_folder_is_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder), str(folder / "water.xyz"), "--dtype", "float32"]) == 0
    assert "water.xyz" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--energy-key", "dft"], "the chosen energy key 'dft' must exist"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused(
    options: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(folder), str(folder / "water.xyz"), *options]) == 2
    assert expected in capsys.readouterr().err


def test_unknown_elements_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ammonia = Atoms("NH3", [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    ammonia.info["REF_energy"] = 1.0
    write(folder / "ammonia.xyz", ammonia)
    assert main(["evaluate", str(folder), str(folder / "ammonia.xyz")]) == 2
    assert "7" in capsys.readouterr().err
