"""`eqtp sample`: labels that belong to the positions in the file, and clear refusals."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from eqtp.models.training import sample
from eqtp.models.training.datasets import load_files
from eqtp.models.training.reading import read

needs_tblite = pytest.mark.skipif(
    importlib.util.find_spec("tblite") is None, reason='needs tblite: pip install "eqtp[xtb]"'
)
needs_rdkit = pytest.mark.skipif(
    importlib.util.find_spec("rdkit") is None, reason='needs rdkit: pip install "eqtp[xtb]"'
)
SHORT = ["--interval", "1", "--equilibration", "2"]
TOLERANCES = {
    # eV/Å: self-consistency of the labels (2e-6 measured) plus rounding to 8 digits
    "forces": 1e-5,
    # eV: as the energy is variational, it is converged far better
    "energy": 1e-6,
}


def arguments(*command: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    return parser.parse_args([str(word) for word in command])


@pytest.fixture
def water(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    return tmp_path / "water.xyz"


@needs_tblite
def test_a_data_set_from_a_structure(
    water: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set.xyz.xz"
    command = ["--structure", water, "--output", output, "--temperature", 300, 600, *SHORT]
    command += ["--frames", 3, "--trajectories", 2, "--test-frames", 2, "--test-trajectories", 1]
    assert sample.run(arguments(*command, "--test-temperature", 900)) == 0
    assert "test 900K: 2 frames" in capsys.readouterr().out
    frames = read(output, require=("energy", "forces"))
    assert [atoms.info["split"] for atoms in frames] == ["isolated"] * 2 + ["train"] * 6 + [
        "test"
    ] * 2
    assert "GFN2-xTB by tblite" in frames[0].info["provenance"]
    splits = load_files(output, valid_fraction=0.2)
    assert (len(splits.train), len(splits.valid), list(splits.tests)) == (5, 1, ["900K"])
    labels_are_right(frames[2:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.xyz.xz", "water.xyz"]


def labels_are_right(frames: list[Atoms]) -> None:
    """Compares labels with a fresh calculation at the positions of the file."""
    from tblite.ase import TBLite

    for atoms in frames:
        again = atoms.copy()
        again.calc = TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0)
        np.testing.assert_allclose(
            atoms.get_forces(), again.get_forces(), atol=TOLERANCES["forces"]
        )
        assert atoms.get_potential_energy() == pytest.approx(
            again.get_potential_energy(), abs=TOLERANCES["energy"]
        )


@needs_tblite
@needs_rdkit
def test_the_same_seed_gives_the_same_data_set(tmp_path: Path) -> None:
    command = ["--smiles", "[OH-]", "--frames", 2, "--trajectories", 2, *SHORT]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sample.run(arguments(*command, "--seed", seed, "--output", tmp_path / f"{name}.xyz"))
    first, again, other = (read(tmp_path / f"{name}.xyz")[2:] for name in "abc")
    assert first == again
    assert first != other
    assert "charge -1" in read(tmp_path / "a.xyz")[0].info["provenance"]


@needs_tblite
def test_the_embedded_labels_belong_to_their_positions() -> None:
    from eqtp.models.training.datasets import load_named

    splits = load_named("3bpa-xtb")
    labels_are_right([splits.train[0], splits.tests["1200K"][-1]])


@needs_tblite
def test_isolated_atoms_bind_in_a_molecule() -> None:
    from tblite.ase import TBLite

    energies = {a.symbols[0]: a.get_potential_energy() for a in sample.isolated_atoms(["H", "O"])}
    water = molecule("H2O")
    water.calc = TBLite(method="GFN2-xTB", verbosity=0)
    binding = water.get_potential_energy() - 2 * energies["H"] - energies["O"]
    assert -15 < binding < -8  # eV; experiment -10.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--frames", 0], ValueError, "--frames must be positive, got 0"),
        (["--interval", 0], ValueError, "--interval must be positive"),
        (["--equilibration", -1], ValueError, "must not be negative"),
        (["--temperature", -5], ValueError, r"--temperature must be positive \(K\), got -5"),
        (["--temperature", "nan"], ValueError, "--temperature must be positive"),
        (["--output", "set.db"], ValueError, r"--output must end in .xyz"),
        (["--output", "nowhere/set.xyz"], FileNotFoundError, "folder of --output must exist"),
    ],
)
def test_bad_arguments_are_refused_before_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tblite.ase", None)  # work would need it
    with pytest.raises(error, match=message):
        sample.run(arguments("--smiles", "O", "--output", "set.xyz", *options))


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    (tmp_path / "set.xyz").write_text("mine")
    with pytest.raises(FileExistsError, match="give --overwrite"):
        sample.run(arguments("--smiles", "O", "--output", tmp_path / "set.xyz"))


@needs_tblite
@needs_rdkit
def test_a_bad_smiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="valid SMILES string, got 'C1C'"):
        sample.run(arguments("--smiles", "C1C", "--output", tmp_path / "set.xyz"))


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = arguments("--smiles", "O", "--output", tmp_path / "set.xyz")
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs tblite: pip install "eqtp\[xtb\]"'):
        sample.run(command)


@needs_tblite
def test_a_missing_rdkit_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs rdkit: pip install "eqtp\[xtb\]"'):
        sample.run(arguments("--smiles", "O", "--output", tmp_path / "set.xyz"))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        sample.write([molecule("H2O")], tmp_path / "set.xyz")
    assert list(tmp_path.iterdir()) == []
