"""Saving and loading models: every bit comes back, and what is not a model file is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from eqtp.models.io import load, save
from eqtp.models.training.data import from_ase


def rewrite(path: Path, **changes: Any) -> None:
    """Edits the description in a model file, leaving its tensors alone."""
    with safe_open(path, framework="pt") as opened:
        description = json.loads(opened.metadata()["eqtp"])
    save_file(load_file(path), path, {"eqtp": json.dumps(description | changes)})


@pytest.fixture
def path(morse: Any, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save(morse, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_tensor_comes_back_bit_for_bit(
    morse: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    morse = morse.to(dtype)
    save(morse, tmp_path / "model.safetensors")
    loaded: Any = load(tmp_path / "model.safetensors")
    assert type(loaded) is type(morse)
    assert loaded.hyperparameters == morse.hyperparameters
    assert not loaded.training
    for key, value in morse.state_dict().items():
        assert loaded.state_dict()[key].dtype == value.dtype
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mace_comes_back_bit_for_bit(mace: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    model = mace.to(dtype).eval()
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    data = from_ase([molecule("CH3CH2OH"), molecule("HCN")], model.r_max, dtype=dtype)
    for key, value in model(data).items():
        assert torch.equal(loaded(data)[key], value), key


def test_a_file_does_not_name_the_kernels(mace: Any, tmp_path: Path) -> None:
    mace.hyperparameters["backend"] = "triton"  # on this machine it may not run
    save(mace, tmp_path / "model.safetensors")
    loaded: Any = load(tmp_path / "model.safetensors")
    assert loaded.hyperparameters == mace.hyperparameters | {"backend": "auto"}


def test_a_buffer_keeps_a_dtype_of_its_own(morse: Any, tmp_path: Path) -> None:
    morse.depth.data = morse.depth.data.float()  # the energies stay in float64
    save(morse, tmp_path / "model.safetensors")
    loaded: Any = load(tmp_path / "model.safetensors")
    assert (loaded.depth.dtype, loaded.atomic_energies.dtype) == (torch.float32, torch.float64)
    assert torch.equal(loaded.atomic_energies, morse.atomic_energies)


def test_dtype_converts(path: Path, morse: Any) -> None:
    loaded: Any = load(path, dtype=torch.float32)
    assert loaded.depth.dtype == torch.float32
    assert torch.equal(loaded.depth, morse.depth.float())
    with pytest.raises(ValueError, match=r"floating-point type, got torch.int64"):
        load(path, dtype=torch.int64)


def test_tied_weights_stay_tied(
    morse: Any, morse_class: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = morse_class.__init__

    def tied_init(self: nn.Module, **hyperparameters: Any) -> None:
        original(self, **hyperparameters)
        self.twin = self.depth

    monkeypatch.setattr(morse_class, "__init__", tied_init)
    model = morse_class(**morse.hyperparameters).float()
    save(model, tmp_path / "model.safetensors")
    loaded: Any = load(tmp_path / "model.safetensors")
    assert loaded.twin is loaded.depth
    assert torch.equal(loaded.depth, model.depth)


def test_global_state_is_untouched(path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    state = torch.get_rng_state()
    load(path)
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failed_write_leaves_the_old_file(
    path: Path, morse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(morse, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_of_a_run_has_its_model(path: Path, morse: Any) -> None:
    assert load(path.parent).state_dict().keys() == morse.state_dict().keys()


def test_missing_files_and_folders(morse: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a model file must exist, got '.*absent'"):
        load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"create '.*absent' first"):
        save(morse, tmp_path / "absent" / "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"abc", b"not a model file at all" * 10])
def test_not_a_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(tmp_path / "model")


def test_a_pickle_is_never_opened(morse: Any, tmp_path: Path) -> None:
    torch.save(morse.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"is a pickle.*MACE\.from_mace"):
        load(tmp_path / "model.pt")


def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for length in {0, 4, 8, 100, len(data) // 2, len(data) - 8, len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut short|not a safetensors file"):
            load(path)


def test_a_flipped_byte_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="do not match their checksum"):
        load(path)


def test_files_of_others_and_of_the_future(path: Path, tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="without a model description"):
        load(tmp_path / "other.safetensors")
    rewrite(path, format=2, eqtp_version="9.0")
    with pytest.raises(ValueError, match=r"format 2, written by eqtp 9\.0.*upgrade eqtp"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": "os.system"}, "unknown class 'os.system'"),
        ({"class": "__builtins__"}, "unknown class"),
        ({"hyperparameters": {"no_such_argument": 1}}, "do not build a MorsePotential"),
        ({"hyperparameters": [1]}, "wrong hyperparameters"),
        ({"dtype": "load"}, "wrong dtype"),
        ({"dtype": "int64"}, "wrong dtype"),
        ({"format": None}, "wrong format"),
        ({"sha256": "0"}, "do not match their checksum"),
    ],
)
def test_an_edited_description_is_refused(
    path: Path, changes: dict[str, Any], message: str
) -> None:
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_tensors_that_do_not_fit_are_listed(
    path: Path, morse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eqtp.models.io._digest", lambda tensors: "same")
    state = {"extra.weight": torch.ones(1), "depth": torch.ones(2, 2)}
    rewrite(path, sha256="same")
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(state, path, metadata)
    with pytest.raises(
        ValueError,
        match=r"missing: atomic_energies; extra: extra\.weight; of another shape: depth \(2, 2\)"
        r" instead of \(4, 4\)",
    ):
        load(path)


def test_what_cannot_be_rebuilt_is_not_saved(morse: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"one of .*MACE, .*MorsePotential itself, got torch\.nn"):
        save(nn.Linear(2, 2), tmp_path / "model")
    morse.hyperparameters["r_max"] = float("nan")
    with pytest.raises(TypeError, match="must be finite numbers, strings, lists and dicts"):
        save(morse, tmp_path / "model")
    assert not list(tmp_path.iterdir())
