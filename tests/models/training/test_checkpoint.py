"""Checkpoint files: whole or refused, safe to read, the previous one as a spare."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eqtp.models.training.checkpoint import (
    CorruptCheckpointError,
    RunDirectory,
    random_states,
    read_checkpoint,
    set_random_states,
    write_checkpoint,
)


def state(step: int = 0) -> dict[str, Any]:
    return {"weight": torch.arange(50.0), "position": {"step": step}, "names": ["a", "b"]}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.ckpt", state(3))
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(read.pop("weight"), torch.arange(50.0))
    assert read == {"position": {"step": 3}, "names": ["a", "b"]}


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, state())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CorruptCheckpointError, match=r"a\.ckpt.*(broken|cut)"):
        read_checkpoint(path)


def test_a_flipped_byte_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, state())
    content = path.read_bytes()
    for position in [*range(110), *range(110, len(content), 97), len(content) - 1]:
        broken = bytearray(content)
        broken[position] ^= 0x10
        path.write_bytes(bytes(broken))
        with pytest.raises(CorruptCheckpointError, match=r"a\.ckpt"):
            read_checkpoint(path)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "a.ckpt"
    write_checkpoint(path, {"trap": Touch()})
    with pytest.raises(CorruptCheckpointError, match="could run code"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_the_previous_checkpoint_replaces_a_broken_last(run: RunDirectory) -> None:
    run.write_last(state(1))
    run.write_last(state(2))
    latest, refused = run.read_latest()
    assert latest is not None
    assert latest["position"]["step"] == 2
    assert refused == []
    run.last.write_bytes(run.last.read_bytes()[:200])
    latest, refused = run.read_latest()
    assert latest is not None
    assert latest["position"]["step"] == 1
    assert len(refused) == 1
    assert "last.ckpt" in refused[0]


def test_a_kill_between_the_two_renames_loses_nothing(run: RunDirectory) -> None:
    run.write_last(state(1))
    run.last.rename(run.previous)
    latest, refused = run.read_latest()
    assert latest is not None
    assert latest["position"]["step"] == 1
    assert refused == []


def test_no_whole_checkpoint_is_an_error_and_none_at_all_a_fresh_start(run: RunDirectory) -> None:
    assert run.read_latest() == (None, [])
    run.last.write_bytes(b"eqtp-checkpoint 1 abc 12\n")
    with pytest.raises(CorruptCheckpointError, match="no whole checkpoint is left"):
        run.read_latest()


def test_a_new_run_never_touches_an_old_one(tmp_path: Path) -> None:
    first = RunDirectory.create(tmp_path / "run")
    second = RunDirectory.create(tmp_path / "run")
    third = RunDirectory.create(tmp_path / "run")
    assert [r.path.name for r in (first, second, third)] == ["run", "run-2", "run-3"]


def test_a_folder_without_a_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        RunDirectory.open(tmp_path)


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    np.random.standard_normal(3)  # leaves a cached Gaussian, a part of the state
    random.gauss(0, 1)
    write_checkpoint(tmp_path / "a.ckpt", random_states())
    before = (random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist())
    set_random_states(read_checkpoint(tmp_path / "a.ckpt"))
    after = (random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist())
    assert before == after
