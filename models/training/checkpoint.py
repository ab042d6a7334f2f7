"""Checkpoint files that are whole or refused, and the run directory that holds them.

A checkpoint is one line of ASCII, `eqtp-checkpoint 1 <sha256> <bytes>`, followed by a `torch.save`
payload of tensors and plain Python values. A file that was cut or has a changed byte does not
match its line and is refused; reading runs no code from the file (`weights_only=True`).
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqtp.files import write_atomically
from eqtp.models.io import MODEL_FILE

_HEADER = re.compile(rb"eqtp-checkpoint 1 ([0-9a-f]{64}) ([0-9]+)")


class CorruptCheckpointError(ValueError):
    """The file is not a whole checkpoint."""


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, dicts, lists, numbers, text) atomically, with its checksum."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    header = f"eqtp-checkpoint 1 {hashlib.sha256(payload).hexdigest()} {len(payload)}\n"
    write_atomically(path, header.encode() + payload)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        CorruptCheckpointError: if it is not a checkpoint, was cut or has changed bytes.
    """
    header, _, payload = path.read_bytes().partition(b"\n")
    found = _HEADER.fullmatch(header)
    if found is None:
        raise CorruptCheckpointError(
            f"{path} must start with 'eqtp-checkpoint 1 <sha256> <bytes>', got {header[:40]!r}: "
            "it is no checkpoint of eqtp, or a broken one"
        )
    digest, length = found[1].decode(), int(found[2])
    if len(payload) != length:
        raise CorruptCheckpointError(
            f"{path} must hold {length} bytes after its first line, got {len(payload)}: it was cut"
        )
    if hashlib.sha256(payload).hexdigest() != digest:
        raise CorruptCheckpointError(
            f"{path} must have the checksum of its first line, {digest[:12]}..., "
            "got another one: bytes in it have changed"
        )
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CorruptCheckpointError(
            f"{path} must hold tensors and plain values only, got other objects: it was not "
            "written by eqtp, and loading it could run code"
        ) from error
    assert isinstance(state, dict)
    return state


def random_states() -> dict[str, Any]:
    """States of the generators of Python, NumPy and torch, as `write_checkpoint` takes them."""
    numpy: dict[str, Any] = dict(np.random.get_state(legacy=False))
    numpy["state"] = {"key": numpy["state"]["key"].tolist(), "pos": numpy["state"]["pos"]}
    return {
        "python": random.getstate(),
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restores what `random_states` returned."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    numpy = dict(states["numpy"])
    numpy["state"] = {**numpy["state"], "key": np.array(numpy["state"]["key"], dtype=np.uint32)}
    np.random.set_state(numpy)
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


class RunDirectory:
    """The files of a run.

    `config.yaml` (resolved), `metrics.csv`, TensorBoard events, `checkpoints/last.ckpt`,
    `checkpoints/previous.ckpt` (the last but one), `checkpoints/best.ckpt`, `model.safetensors`
    (the best EMA weights), `report/`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.model = self.path / MODEL_FILE
        self.report = self.path / "report"
        self.last = self.path / "checkpoints" / "last.ckpt"
        self.previous = self.path / "checkpoints" / "previous.ckpt"
        self.best = self.path / "checkpoints" / "best.ckpt"

    @classmethod
    def create(cls, path: str | Path) -> RunDirectory:
        """A new folder; where `path` holds files already, `path-2`, `path-3`, ... is taken."""
        path, number = Path(path), 1
        candidate = path
        while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
        (candidate / "checkpoints").mkdir(parents=True, exist_ok=True)
        return cls(candidate)

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run.

        Raises:
            FileNotFoundError: if the folder holds no run.
        """
        run = cls(path)
        if not run.config.is_file():
            raise FileNotFoundError(
                f"a run to resume must be a folder with a config.yaml, got {str(path)!r}"
            )
        return run

    def write_last(self, state: dict[str, Any]) -> None:
        """Makes `state` the last checkpoint and the former last one the previous."""
        incoming = self.last.with_name("incoming.ckpt")
        write_checkpoint(incoming, state)
        if self.last.exists():
            os.replace(self.last, self.previous)
        os.replace(incoming, self.last)

    def write_best(self, state: dict[str, Any]) -> None:
        """Makes `state` the best checkpoint."""
        write_checkpoint(self.best, state)

    def read_latest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest whole checkpoint, None before the first, and why newer ones were refused.

        Raises:
            CorruptCheckpointError: if there are checkpoints and none is whole.
        """
        refused: list[str] = []
        for path in (self.last, self.previous):
            try:
                return read_checkpoint(path), refused
            except FileNotFoundError:
                continue
            except CorruptCheckpointError as error:
                refused.append(str(error))
        if refused:
            raise CorruptCheckpointError(
                "; ".join(refused) + ": no whole checkpoint is left to resume from; "
                f"{self.best} may hold one, or start again"
            )
        return None, refused
