"""Training with path gates: three phases by the step, one set of paths, a pruned model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.io import write

import eqtp.models
from eqtp.cli import main
from eqtp.models.blocks.path_gates import path_gates
from eqtp.models.training.checkpoint import RunDirectory, read_checkpoint
from eqtp.models.training.config import load_config, parse_config
from eqtp.models.training.lightning_module import TrainingModule

# Resumed runs execute the same operations; the report prints the pruned model's errors, the log
# those of the gated one.
TOLERANCES = {"rows": 1e-10, "pruned": 1e-6}

CONFIG = """
model: {hidden_irreps: 4x0e+4x1o, max_ell: 2, correlation: 2, r_max: 3.0, radial_mlp: [8]}
data: {train_file: water.xyz, e0s: {H: -1.0, O: -2.0}}
training:
  {max_epochs: 4, batch_size: 4, lr: 0.02, accelerator: cpu, num_threads: 1,
   path_gate: {keep: 0.5, random_epochs: 1.5, top_epochs: 0.125}}
checkpoint: {interval_steps: 1}
"""


@pytest.fixture
def folder(
    tmp_path: Path, frames: Callable[[int], list[Atoms]], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "water.yaml").write_text(CONFIG)
    write("water.xyz", frames(18))
    return tmp_path


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, tuple[int, ...]]]:
    """Step, phase and paths of every training step."""
    seen: list[tuple[int, str, tuple[int, ...]]] = []
    original = TrainingModule.training_step

    def training_step(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        result = original(self, batch, batch_idx)
        (gate,), (average,) = self.gates
        seen.append((self.position.step, gate.phase, gate.selected()))
        if gate.phase == "frozen":
            assert average.selected() == gate.selected()
        return result

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    return seen


def test_three_phases_and_a_pruned_model(
    folder: Path,
    phases: list[tuple[int, str, tuple[int, ...]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "water.yaml", "run_dir=run"]) == 0
    assert [phase for _, phase, _ in phases] == ["random"] * 6 + ["top"] * 2 + ["frozen"] * 8
    assert len({paths for _, phase, paths in phases if phase == "random"}) > 2
    (kept,) = {paths for _, phase, paths in phases if phase == "frozen"}

    model: Any = eqtp.models.load("run/model.safetensors")
    assert model.hyperparameters["paths"] == [None, list(kept)]
    assert not path_gates(model)
    report = json.loads((folder / "run/report/errors.json").read_text())
    assert report["paths"] == [None, list(kept)]
    assert any("paths of layer 2: 4 of 7 kept (frozen)" in note for note in report["notes"])
    assert "paths of layer 2" in capsys.readouterr().out
    with open("run/metrics.csv") as stream:
        header, *rows = stream.read().splitlines()
    column = header.split(",").index("valid_forces_rmse")
    best = min(float(row.split(",")[column]) for row in rows)
    (validation,) = report["sets"]
    assert validation["errors"]["forces_rmse"] == pytest.approx(best, rel=TOLERANCES["pruned"])


def test_a_run_that_ends_before_the_gates_freeze_keeps_the_highest_scores(folder: Path) -> None:
    assert main(["train", "water.yaml", "run_dir=run", "training.max_epochs=1"]) == 0
    model: Any = eqtp.models.load("run/model.safetensors")
    ema = read_checkpoint(RunDirectory("run").best)["ema"]
    scores = ema["interactions.1.gate.scores"].tolist()
    _, kept = model.hyperparameters["paths"]
    assert len(kept) == 4
    assert max(range(len(scores)), key=lambda path: scores[path]) in kept
    report = json.loads((folder / "run/report/errors.json").read_text())
    assert report["paths"] == [None, kept]
    assert any("4 of 7 kept (random)" in note for note in report["notes"])


def test_a_resumed_run_goes_on_with_the_same_paths(
    folder: Path, phases: list[tuple[int, str, tuple[int, ...]]]
) -> None:
    """Ended in the random phase and again once frozen, it is the run that did not end."""
    assert main(["train", "water.yaml", "run_dir=whole"]) == 0
    whole = list(phases)
    phases.clear()
    for arguments in (["water.yaml", "run_dir=run"], ["--resume", "run"], ["--resume", "run"]):
        stop = {0: 3, 3: 11}.get(len(phases))
        if stop is not None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(TrainingModule, "training_step", _ends_at(stop))
                assert _raises(lambda: main(["train", *arguments]))  # noqa: B023
        else:
            assert main(["train", *arguments]) == 0
    assert phases == whole
    states = [read_checkpoint(RunDirectory(name).last)["model"] for name in ("whole", "run")]
    for name, value in states[0].items():
        difference = (states[1][name] - value).abs().max()
        assert difference <= TOLERANCES["rows"], name


class _Killed(BaseException):
    """Stands for a process that ends at once."""


def _ends_at(step: int) -> Any:
    original = TrainingModule.training_step

    def training_step(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if self.position.step == step:
            raise _Killed
        return original(self, batch, batch_idx)

    return training_step


def _raises(command: Callable[[], Any]) -> bool:
    try:
        command()
    except _Killed:
        return True
    return False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.path_gate.keep=0", "training.path_gate.keep"),
        ("training.path_gate.pairs=0.5", "not for force fields"),
        ("training.pair_gate=0.5", "not for force fields.*use eqtp.PathGate"),
        ("model={name: TensorNet}", "path_gate needs model.name=MACE"),
    ],
)
def test_configs_that_make_no_sense_are_refused(override: str, message: str) -> None:
    raw: dict[str, Any] = {
        "data": {"train_file": "water.xyz"},
        "training": {"path_gate": {"keep": 0.5}},
    }
    with pytest.raises(ValueError, match=message):
        parse_config(raw, [override], source="test")


def test_without_a_path_gate_nothing_changes(folder: Path) -> None:
    config = load_config("water.yaml", ["training.path_gate=null"])
    assert config.training.path_gate is None
    assert main(["train", "water.yaml", "training.path_gate=null", "run_dir=run"]) == 0
    model: Any = eqtp.models.load("run/model.safetensors")
    assert model.hyperparameters["paths"] is None
    assert "paths" not in json.loads((folder / "run/report/errors.json").read_text())
    assert torch.is_tensor(next(model.parameters()))
