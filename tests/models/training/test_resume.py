"""`eqtp train` from end to end: killed three times and resumed, it ends where it would have."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from ase.io import write

import eqtp.models

TOLERANCES = {"rows": 1e-10}  # the bar; both runs execute the same operations

CONFIG = """
model: {hidden_irreps: 4x0e+4x1o, max_ell: 1, correlation: 3, r_max: 3.0, radial_mlp: [8]}
data: {train_file: water.xyz, e0s: {H: -1.0, O: -2.0}, test_files: {hold-out: test.xyz}}
training:
  {max_epochs: 30, batch_size: 2, lr: 0.02, accelerator: cpu, num_threads: 1,
   scheduler: {kind: plateau, patience: 2},
   phases: [{start: 0}, {start: 0.6, energy_weight: 1000, lr: 0.005}]}
checkpoint: {interval_steps: 3}
"""


@pytest.fixture
def folder(tmp_path: Path, frames: Callable[[int], list[Atoms]]) -> Path:
    """A folder with a config and its data."""
    (tmp_path / "water.yaml").write_text(CONFIG)
    write(tmp_path / "water.xyz", frames(20))
    write(tmp_path / "test.xyz", frames(6))
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "eqtp.cli", "train", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as stream:
        read = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read]


def kill_in_training(process: subprocess.Popen[str], run: Path, delay: float) -> None:
    """SIGKILL, `delay` seconds after the process has written its first checkpoint."""
    last = run / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    deadline = time.monotonic() + 300
    while not last.exists() or last.stat().st_mtime_ns == before:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    assert process.poll() is None, "the run ended before it was killed: make it longer"
    process.kill()
    process.communicate()


def test_three_kills_leave_no_trace(folder: Path) -> None:
    whole = start(folder, "water.yaml", "run_dir=whole")
    generator = random.Random(time.time_ns())
    arguments = ["water.yaml", "run_dir=parts"]
    for _ in range(3):
        kill_in_training(start(folder, *arguments), folder / "parts", generator.uniform(0, 0.4))
        arguments = ["--resume", "parts"]
    output = finish(start(folder, *arguments))
    report = finish(whole)
    assert "resuming at epoch" in output
    expected, found = rows(folder / "whole"), rows(folder / "parts")
    assert [row["epoch"] for row in found] == list(range(1, 31))
    for row_expected, row_found in zip(expected, found, strict=True):
        assert row_found == pytest.approx(row_expected, rel=TOLERANCES["rows"], abs=0)

    errors = json.loads((folder / "parts/report/errors.json").read_text())
    expected_errors = json.loads((folder / "whole/report/errors.json").read_text())
    for a, b in zip(errors["sets"], expected_errors["sets"], strict=True):
        assert a["errors"] == pytest.approx(b["errors"], rel=1e-8)
    assert [s["name"] for s in errors["sets"]] == ["validation", "hold-out"]

    assert "hold-out" in report
    for name in ("errors.md", "curves.png", "parity_energy.png", "parity_forces.png"):
        assert str(Path("whole/report") / name) in report
        assert (folder / "whole/report" / name).is_file()
    model: Any = eqtp.models.load(folder / "whole/model.safetensors")
    assert model.hyperparameters["hidden_irreps"] == "4x0e+4x1o"


def test_a_resumed_run_keeps_its_model(folder: Path) -> None:
    finish(start(folder, "water.yaml", "run_dir=run", "training.max_epochs=2"))
    process = start(folder, "--resume", "run", "model.r_max=2.5")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "other values of" in output
    assert "r_max" in output
