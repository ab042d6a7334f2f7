"""Two processes under DDP (gloo, CPU) train as one process with the doubled batch does."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

TOLERANCES = {"rows": 1e-10}  # the bar; sums in another order differ by some 1e-15 a step

# 17 frames: the batches do not divide evenly, nor do the shares of the processes. The frames
# differ in size, so that a mean over processes is not the mean over atoms.
CONFIG = """
model: {hidden_irreps: 4x0e+4x1o, max_ell: 1, correlation: 3, r_max: 3.0, radial_mlp: [8]}
data: {train_file: train.xyz, valid_file: valid.xyz, e0s: {H: -1.0, O: -2.0}}
training: {max_epochs: 4, lr: 0.01, accelerator: cpu, num_threads: 1, clip_grad_norm: 1.0}
"""


# Random sets of paths in the first epoch, the best in the second, then the pruned product: all
# processes must choose the same.
GATE = "training.path_gate={keep: 0.5, random_epochs: 1, top_epochs: 1}"


def train(folder: Path, *arguments: str) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "eqtp.cli", "train", "config.yaml", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    run = next(a.removeprefix("run_dir=") for a in arguments if a.startswith("run_dir="))
    with (folder / run / "metrics.csv").open(newline="") as stream:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("options", [[], [GATE]], ids=["dense", "gated"])
def test_two_processes_equal_one_with_the_doubled_batch(
    tmp_path: Path, frames: Callable[..., list[Atoms]], options: list[str]
) -> None:
    pairs = []
    for first, second in zip(frames(8, 1), frames(8, 2), strict=True):
        pair = first + Atoms(second.symbols, second.positions + np.array([8.0, 0.0, 0.0]))
        pair.info["REF_energy"] = sum(a.get_potential_energy() for a in (first, second))
        pair.arrays["REF_forces"] = np.concatenate([a.get_forces() for a in (first, second)])
        pairs.append(pair)
    singles = frames(9)
    for atoms in singles:
        atoms.info["REF_energy"] = atoms.calc.results["energy"]
        atoms.arrays["REF_forces"] = atoms.calc.results["forces"]
        atoms.calc = None
    write(tmp_path / "train.xyz", pairs + singles)
    write(tmp_path / "valid.xyz", frames(5, 3))
    (tmp_path / "config.yaml").write_text(CONFIG)
    one = train(tmp_path, "run_dir=one", "training.batch_size=6", *options)
    halves = ["training.batch_size=3", "training.devices=2"]
    two = train(tmp_path, "run_dir=two", *halves, *options)
    assert len(one) == 4
    assert one[-1]["step"] == 12
    for row_one, row_two in zip(one, two, strict=True):
        assert row_two == pytest.approx(row_one, rel=TOLERANCES["rows"], abs=0)
