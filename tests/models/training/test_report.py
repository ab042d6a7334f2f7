"""Evaluation, error tables and plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import nn

from eqtp.models.training.data import StructureDataset
from eqtp.models.training.evaluation import Evaluation, evaluate
from eqtp.models.training.plots import plot_curves, plot_parity
from eqtp.models.training.report import Report


def evaluation(name: str, forces_error: float = 0.01) -> Evaluation:
    """50 frames of 27 atoms with known errors: 27 meV of energy, `forces_error` eV/Å."""
    generator = np.random.default_rng(0)
    energy, forces = generator.normal(-100.0, 1.0, 50), generator.normal(0.0, 1.0, 50 * 81)
    labels = {"energy": energy, "per_atom": energy / 27, "forces": forces}
    predictions = {
        "energy": energy + 0.027,
        "per_atom": (energy + 0.027) / 27,
        "forces": forces + forces_error,
    }
    values = {"energy_rmse": 27.0, "energy_mae": 27.0, "per_atom_rmse": 1.0, "per_atom_mae": 1.0}
    values |= {"forces_rmse": 1000 * forces_error, "forces_mae": 1000 * forces_error}
    return Evaluation(name, 50, values, labels, predictions)


@pytest.fixture
def report() -> Report:
    sets = ["300K (mixedT hold-out)", "600K (mixedT hold-out)", "other"]
    note = "mixedT hold-out, not the official test set"
    return Report("my run", [evaluation(name) for name in sets], [note], "3bpa")


def test_metrics_agree_with_the_predictions(
    frames: Callable[[int], list[Atoms]], pair_potential: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    model = pair_potential(atomic_numbers=[1, 8])
    structures = list(StructureDataset(frames(7), 3.0))
    found = evaluate(model, structures, name="water", batch_size=3)
    assert found.num_frames == 7
    for key in ("energy", "per_atom", "forces"):
        error = 1000 * (found.predictions[key] - found.labels[key])
        assert found.metrics[f"{key}_rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-12)
        assert found.metrics[f"{key}_mae"] == pytest.approx(np.mean(np.abs(error)), rel=1e-12)
    whole = evaluate(model, structures, batch_size=100)
    np.testing.assert_allclose(whole.predictions["forces"], found.predictions["forces"], atol=1e-12)


def test_evaluation_needs_labels(
    frames: Callable[[int], list[Atoms]], pair_potential: type[nn.Module]
) -> None:
    bare = frames(1)
    bare[0].calc = None
    with pytest.raises(ValueError, match="forces or targets, got none"):
        evaluate(pair_potential(atomic_numbers=[1, 8]), list(StructureDataset(bare, 3.0)))


def test_text_has_units_stand_ins_and_published_figures(report: Report) -> None:
    text = report.text()
    for heading in ("E RMSE [meV]", "E RMSE [meV/atom]", "F RMSE [meV/Å]", "F MAE [meV/Å]"):
        assert heading in text
    assert "mixedT hold-out, not the official test set" in text
    ours = next(line for line in text.splitlines() if line.startswith("this model"))
    assert ours.split("  ")[-1].strip() == "-"
    assert ours.count("27.0 / 10.0") == 2
    published = next(line for line in text.splitlines() if line.startswith("MACE L=2"))
    assert "3.0 / 8.8" in published
    assert "9.7 / 21.8" in published
    assert "29.8" not in published  # no 1200 K set here
    assert "S RMSE" not in text


def test_sets_without_published_figures_make_one_table() -> None:
    text = Report("my run", [evaluation("300K")], ["GFN2-xTB labels: not comparable"]).text()
    assert "MACE" not in text
    assert "not comparable" in text


def test_files_hold_the_same_numbers(report: Report, tmp_path: Path) -> None:
    text, markdown, numbers = report.write(tmp_path)
    assert text.read_text() == report.text() + "\n"
    rows = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    assert rows[0].startswith("| set | frames | E RMSE [meV] |")
    assert len({row.count("|") for row in rows[:5]}) == 1
    content = json.loads(numbers.read_text())
    assert content["units"]["forces_rmse"] == "meV/Å"
    assert content["sets"][1]["errors"]["energy_rmse"] == 27.0
    assert content["published"][0]["energy_and_forces_rmse"]["300K"] == [3.0, 8.8]


def test_plots_are_images(report: Report, tmp_path: Path) -> None:
    rows = [
        {
            "epoch": float(epoch),
            "seconds": 3.0 * epoch,
            "train_loss": 1 / epoch,
            "valid_loss": 2 / epoch,
            "train_forces_rmse": 50 / epoch,
            "valid_forces_rmse": 60 / epoch,
        }
        for epoch in range(1, 5)
    ]
    paths = [
        plot_parity(report.evaluations, "energy", tmp_path / "energy.png"),
        plot_parity(report.evaluations, "forces", tmp_path / "forces.png"),
        plot_curves(rows, tmp_path / "curves.png"),
    ]
    for path in paths:
        assert path is not None
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
    assert plot_parity(report.evaluations, "stress", tmp_path / "none.png") is None
