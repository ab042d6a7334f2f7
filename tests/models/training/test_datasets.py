"""Named data sets, the look-up of their files, and the user's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms

from eqtp.models.training.datasets import load_files, load_named, split_validation
from eqtp.models.training.lookup import Lookup, Repository, blob_id, cache_directory

_SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
DATA = Path(os.environ.get("EQTP_DATA", _SHARED))
needs_3bpa = pytest.mark.skipif(
    not (DATA / "3bpa" / "train_300K.xyz").is_file(), reason="needs 3bpa: set EQTP_DATA"
)
CONTENT = b"a file\n"


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the caller's folder nor the caller's cache plays a part."""
    monkeypatch.delenv("EQTP_DATA", raising=False)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def molecules(count: int, seed: int = 0, **info: Any) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        atoms = Atoms("HH", [[0, 0, 0], [0, 0, 0.7 + 0.1 * rng.random()]])
        atoms.info.update(energy=-30.0 - i, **info)
        atoms.arrays["forces"] = np.zeros((2, 3))
        made.append(atoms)
    return made


@pytest.fixture
def server(tmp_path: Path) -> tuple[Path, Repository]:
    """A repository that is a folder: `file://` stands for the network."""
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "a.xyz").write_bytes(CONTENT)
    blobs = {"a.xyz": blob_id(CONTENT), "b.xyz": blob_id(b"other")}
    return folder, Repository("set", folder.as_uri() + "/", blobs)


def test_blob_ids_are_those_of_git() -> None:
    # `printf 'hello\n' | git hash-object --stdin`
    assert blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_download_is_checked_and_kept(server: tuple[Path, Repository]) -> None:
    folder, repository = server
    path = Lookup(repository).find("a.xyz")
    assert path is not None
    assert path == cache_directory() / "set" / "a.xyz"
    assert path.read_bytes() == CONTENT
    (folder / "a.xyz").unlink()
    assert Lookup(repository).find("a.xyz") == path  # from the cache
    assert [p.name for p in path.parent.iterdir()] == ["a.xyz"]


def test_a_different_download_and_a_damaged_cache_are_not_used(
    server: tuple[Path, Repository], caplog: pytest.LogCaptureFixture
) -> None:
    folder, repository = server
    (folder / "b.xyz").write_bytes(b"an error page")
    assert Lookup(repository).find("b.xyz") is None
    assert "is not the published file" in caplog.text
    cached = Lookup(repository).find("a.xyz")
    assert cached is not None
    cached.write_bytes(CONTENT[:-1])
    assert Lookup(repository, download=False).find("a.xyz") is None
    assert "is damaged" in caplog.text
    assert Lookup(repository).find("a.xyz") == cached
    assert cached.read_bytes() == CONTENT  # fetched anew


def test_folders_come_first_in_the_given_order(
    server: tuple[Path, Repository], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, repository = server
    chosen, environment = tmp_path / "chosen", tmp_path / "data"
    for folder in (chosen, environment / "set"):
        folder.mkdir(parents=True)
        (folder / "a.xyz").write_text("mine")
    monkeypatch.setenv("EQTP_DATA", str(environment))
    assert Lookup(repository, chosen).find("a.xyz") == chosen / "a.xyz"
    (chosen / "a.xyz").unlink()
    assert Lookup(repository, chosen).find("a.xyz") == environment / "set" / "a.xyz"
    assert not Lookup(repository).is_published(environment / "set" / "a.xyz")


def test_no_network_is_asked_once(
    server: tuple[Path, Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, repository = server
    asked: list[tuple[str, float]] = []

    def unreachable(url: str, timeout: float) -> None:
        asked.append((url, timeout))
        raise TimeoutError("no answer")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    lookup = Lookup(repository)
    assert lookup.find("a.xyz") is None
    assert lookup.find("b.xyz") is None
    assert len(asked) == 1
    assert asked[0][1] <= 5
    assert Lookup(repository, download=False).find("a.xyz") is None
    assert len(asked) == 1


@needs_3bpa
def test_3bpa_with_stand_ins_named_as_such() -> None:
    splits = load_named("3bpa", folder=DATA / "3bpa", download=False)
    assert (splits.name, splits.published) == ("3bpa", "3bpa")
    assert (len(splits.train), len(splits.valid), len(splits.isolated)) == (450, 50, 4)
    if not (DATA / "3bpa" / "test_300K.xyz").is_file():
        assert {name: len(frames) for name, frames in splits.tests.items()} == {
            "300K (mixedT hold-out)": 136,
            "600K (mixedT hold-out)": 167,
            "1200K (mixedT hold-out)": 166,
        }
        assert any("not the official test set" in note for note in splits.notes)
    trained = {atoms.positions.tobytes() for atoms in splits.train + splits.valid}
    assert len(trained) == 500
    for frames in splits.tests.values():
        assert not trained.intersection(atoms.positions.tobytes() for atoms in frames)


@needs_3bpa
def test_3bpa_is_found_through_the_environment_and_official_tests_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "3bpa"
    folder.mkdir(parents=True)
    for name in ("train_300K.xyz", "iso_atoms.xyz"):
        (folder / name).symlink_to(DATA / "3bpa" / name)
    ase.io.write(folder / "test_600K.xyz", molecules(3))
    monkeypatch.setenv("EQTP_DATA", str(tmp_path / "data"))
    splits = load_named("3bpa", download=False)
    assert {name: len(frames) for name, frames in splits.tests.items()} == {"600K": 3}
    assert any("is not the published test_600K.xyz" in note for note in splits.notes)


def test_without_3bpa_the_embedded_set_takes_its_place_and_says_so() -> None:
    with pytest.warns(UserWarning, match="the embedded 3bpa-xtb takes its place"):
        splits = load_named("3bpa", download=False)
    assert splits.name == "3bpa-xtb"
    assert splits.published is None
    assert "the embedded 3bpa-xtb takes its place" in splits.notes[0]


def test_the_embedded_set() -> None:
    splits = load_named("3bpa-xtb")
    assert (len(splits.train), len(splits.valid)) == (450, 50)
    assert {name: len(frames) for name, frames in splits.tests.items()} == {
        "300K": 100,
        "600K": 100,
        "1200K": 100,
    }
    assert sorted(atoms.get_chemical_symbols()[0] for atoms in splits.isolated) == list("CHNO")
    assert "GFN2-xTB by tblite" in splits.notes[0]
    reference = {atoms.numbers[0]: atoms.get_potential_energy() for atoms in splits.isolated}
    for atoms in splits.train + splits.valid:
        assert atoms.get_chemical_formula() == "C12H12N2O"
        binding = atoms.get_potential_energy() - sum(reference[z] for z in atoms.numbers)
        assert -9 < binding / len(atoms) < -3  # eV per atom: a bound molecule
    mean_force = {
        name: np.mean([np.square(atoms.get_forces()).mean() for atoms in frames])
        for name, frames in splits.tests.items()
    }
    assert mean_force["300K"] < mean_force["600K"] < mean_force["1200K"]


def test_unknown_names_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be one of 3bpa, 3bpa-xtb, got 'md17'"):
        load_named("md17")
    with pytest.raises(FileNotFoundError, match=r"must hold train_300K.xyz, got .*nowhere"):
        load_named("3bpa", folder=tmp_path / "nowhere")


def test_validation_frames_are_drawn_by_the_seed() -> None:
    frames = molecules(20)
    train, valid = split_validation(frames, 0.25, seed=1)
    assert len(valid) == 5
    assert sorted(a.info["energy"] for a in train + valid) == sorted(
        a.info["energy"] for a in frames
    )
    assert split_validation(frames, 0.25, seed=1) == (train, valid)
    assert split_validation(frames, 0.25, seed=2)[1] != valid
    assert len(split_validation(frames[:2], 0.9, seed=0)[0]) == 1
    with pytest.raises(ValueError, match="above 0 and below 1"):
        split_validation(frames, 1.0, seed=0)
    with pytest.raises(ValueError, match="at least two frames"):
        split_validation(frames[:1], 0.1, seed=0)


def test_user_files(tmp_path: Path) -> None:
    atom = Atoms("H", info={"energy": -13.6})
    ase.io.write(tmp_path / "train.xyz", [atom, *molecules(10)])
    ase.io.write(tmp_path / "valid.xyz", molecules(3, seed=1))
    ase.io.write(tmp_path / "hot.xyz", molecules(4, seed=2))
    splits = load_files(tmp_path / "train.xyz", test_files={"hot": tmp_path / "hot.xyz"})
    assert (len(splits.train), len(splits.valid), len(splits.tests["hot"])) == (9, 1, 4)
    assert len(splits.isolated) == 1
    assert splits.name == "train.xyz"
    splits = load_files(tmp_path / "train.xyz", valid_file=tmp_path / "valid.xyz")
    assert (len(splits.train), len(splits.valid)) == (10, 3)


def test_frames_marked_as_tests_are_never_trained_on(tmp_path: Path) -> None:
    marked = [
        *molecules(6, split="train"),
        *molecules(2, split="valid"),
        *molecules(3, split="test", config_type="600K"),
    ]
    ase.io.write(tmp_path / "all.xyz", marked)
    splits = load_files(tmp_path / "all.xyz")
    assert (len(splits.train), len(splits.valid)) == (6, 2)
    assert {name: len(frames) for name, frames in splits.tests.items()} == {"600K": 3}


def test_user_files_without_training_frames_or_labels(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "tests.xyz", molecules(3, split="test"))
    with pytest.raises(ValueError, match="at least two frames"):
        load_files(tmp_path / "tests.xyz")
    bare = molecules(3)
    for atoms in bare:
        del atoms.arrays["forces"]
    ase.io.write(tmp_path / "bare.xyz", bare)
    with pytest.raises(ValueError, match="missing: forces"):
        load_files(tmp_path / "bare.xyz")
    assert len(load_files(tmp_path / "bare.xyz", require=("energy",)).train) == 2
