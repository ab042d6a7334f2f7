"""Reading labelled files: where labels are found, and every kind of bad file."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from eqtp.models.training.labels import LabelKeys, find_labels
from eqtp.models.training.reading import read

ENERGY, FORCES = -3.25, np.array([[0.0, 0.5, -0.25], [0.0, -0.5, 0.25]])
STRESS = np.array([[1.0, 0.6, 0.5], [0.6, 2.0, 0.4], [0.5, 0.4, 3.0]]) / 64
LABEL_KEYS = ("energy", "forces", "REF_energy", "REF_forces")


def frame(energy_key: str = "energy", forces_key: str = "forces", **info: Any) -> Atoms:
    """A hydrogen molecule with labels under any names."""
    atoms = Atoms("HH", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.75]])
    atoms.info[energy_key] = ENERGY
    atoms.arrays[forces_key] = FORCES.copy()
    atoms.info.update(info)
    return atoms


def text(
    header: str = 'Properties=species:S:1:pos:R:3:forces:R:3 energy=-3.25 pbc="F F F"',
    rows: list[str] | None = None,
) -> str:
    rows = rows or ["H 0.0 0.0 0.0 0.0 0.5 -0.25", "H 0.0 0.0 0.75 0.0 -0.5 0.25"]
    return "\n".join([str(len(rows)), header, *rows]) + "\n"


def file(tmp_path: Path, content: str | bytes, name: str = "data.xyz") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("keys", [("energy", "forces"), ("REF_energy", "REF_forces")])
def test_labels_are_found_under_the_usual_names(tmp_path: Path, keys: tuple[str, str]) -> None:
    ase.io.write(tmp_path / "a.xyz", [frame(*keys), frame(*keys)])
    frames = read(tmp_path / "a.xyz", require=("energy", "forces"))
    assert [atoms.get_potential_energy() for atoms in frames] == [ENERGY, ENERGY]
    np.testing.assert_array_equal(frames[1].get_forces(), FORCES)
    assert not {*frames[0].info, *frames[0].arrays}.intersection(LABEL_KEYS)


def test_labels_are_found_in_the_calculator_and_beside_it() -> None:
    atoms = frame()
    assert find_labels(atoms)["energy"] == ENERGY
    del atoms.info["energy"], atoms.arrays["forces"]
    atoms.calc = SinglePointCalculator(atoms, energy=ENERGY, forces=FORCES)
    assert find_labels(atoms)["energy"] == ENERGY
    np.testing.assert_array_equal(find_labels(atoms)["forces"], FORCES)


def test_results_of_other_positions_are_no_labels() -> None:
    atoms = Atoms("HH", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.75]])
    atoms.calc = SinglePointCalculator(atoms, energy=ENERGY)
    atoms.positions[1, 2] = 0.8
    assert find_labels(atoms) == {}


def test_chosen_keys(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.xyz", frame("dft_energy", "dft_forces", energy=7.0))
    keys = LabelKeys(energy="dft_energy", forces="dft_forces")
    atoms = read(tmp_path / "a.xyz", keys=keys)[0]
    assert atoms.get_potential_energy() == ENERGY
    with pytest.raises(ValueError, match=r"frame 0: the chosen energy key 'dft' must exist.*dft_e"):
        read(tmp_path / "a.xyz", keys=LabelKeys(energy="dft"))


def test_no_label_names_what_is_there(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.xyz", frame("E_tot", "grad"))
    with pytest.raises(ValueError, match=r"a.xyz, frame 0: labels must be found.*E_tot, grad"):
        read(tmp_path / "a.xyz")
    assert len(read(tmp_path / "a.xyz", require=())) == 1


def test_a_required_label_that_is_missing(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.xyz", [frame(), frame(forces_key="other")])
    assert len(read(tmp_path / "a.xyz")) == 2
    with pytest.raises(ValueError, match=r"frame 1: .*missing: forces"):
        read(tmp_path / "a.xyz", require=("energy", "forces"))


def test_an_isolated_atom_needs_no_forces(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.xyz", Atoms("H", info={"energy": -13.6}))
    assert read(tmp_path / "a.xyz", require=("energy", "forces"))[0].get_potential_energy() == -13.6


def test_usual_names_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="energy must be unambiguous"):
        find_labels(frame(REF_energy=1.0))
    assert find_labels(frame(REF_energy=ENERGY))["energy"] == ENERGY
    assert find_labels(frame(REF_energy=1.0), LabelKeys(energy="REF_energy"))["energy"] == 1.0


VOIGT = STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


@pytest.mark.parametrize("value", [STRESS, STRESS.reshape(9), VOIGT])
@pytest.mark.parametrize("key", ["stress", "REF_stress"])
def test_stress_of_any_shape(tmp_path: Path, key: str, value: np.ndarray) -> None:
    atoms = frame()
    atoms.info[key] = value
    atoms.set_cell([4.0, 4.0, 4.0])
    atoms.pbc = True
    np.testing.assert_allclose(find_labels(atoms)["stress"], STRESS, atol=1e-15)
    ase.io.write(tmp_path / "a.xyz", atoms)
    labelled = read(tmp_path / "a.xyz")[0]
    np.testing.assert_allclose(find_labels(labelled)["stress"], STRESS, atol=1e-12)
    np.testing.assert_allclose(labelled.get_stress(), VOIGT, atol=1e-12)


@pytest.mark.parametrize("key", ["virials", "REF_virials"])
def test_virials_become_a_stress(key: str) -> None:
    atoms = frame()
    atoms.info[key] = -STRESS * 64
    with pytest.raises(ValueError, match="virials need a cell"):
        find_labels(atoms)
    atoms.set_cell([4.0, 4.0, 4.0])
    np.testing.assert_allclose(find_labels(atoms)["stress"], STRESS, atol=1e-15)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    compressors: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
    }
    content = compressors[suffix]((text() * 3).encode())
    assert len(read(file(tmp_path, content, f"data.xyz{suffix}"))) == 3
    with pytest.raises(ValueError, match=r"data.xyz\S+: the file must be complete"):
        read(file(tmp_path, content[:-20], f"data.xyz{suffix}"))


def test_a_compressed_file_is_decompressed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, lzma.compress((text() * 3).encode()), "data.xyz.xz")
    monkeypatch.setattr(lzma.LZMAFile, "seek", None)  # going back means to start anew
    assert len(read(path)) == 3


def test_a_name_with_an_at_sign(tmp_path: Path) -> None:
    assert len(read(file(tmp_path, text() * 2, "set@home.xyz"))) == 2


def test_a_missing_file_and_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must exist"):
        read(tmp_path / "none.xyz")
    for content in ("", "\n\n"):
        with pytest.raises(ValueError, match="at least one structure"):
            read(file(tmp_path, content))
    with pytest.raises(ValueError, match="readable by ASE"):
        read(file(tmp_path, "nonsense", "data.unknown"))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = text() * 3
    for end in range(1, len(content)):
        path = file(tmp_path, content[:end])
        if end % len(text()) == 0:  # whole frames cannot be told from a shorter file
            assert len(read(path)) == end // len(text())
        else:
            with pytest.raises(ValueError, match=rf"data.xyz, frame {end // len(text())}: "):
                read(path)


def test_what_ase_would_leave_out_silently_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frame 1: frames must not be separated by blank lines"):
        read(file(tmp_path, text() + "\n" + text()))
    surplus = ["H 0 0 0 0 0 0 9", "H 0 0 0.75 0 0 0 9"]
    with pytest.raises(ValueError, match=r"frame 0: line 3 must have 7 columns.*got 8"):
        read(file(tmp_path, text(rows=surplus)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text(rows=["H 0 0 nan 0 0 0", "H 0 0 1 0 0 0"]), "positions must be finite.*atom 0"),
        (text(rows=["H 0 0 inf 0 0 0", "H 0 0 1 0 0 0"]), "positions must be finite"),
        (text(rows=["H 0 0 0 0 nan 0", "H 0 0 1 0 0 0"]), "forces must be finite"),
        (text().replace("-3.25 ", "nan "), "energy must be finite"),
        (text().replace("-3.25 ", "minus_three "), "energy must be real numbers"),
        (text().replace("-3.25 ", '"1.0 2.0" '), "energy must be one number"),
        (text().replace("forces:R:3", "forces:R:2:x:R:1"), r"forces must have shape \(2, 3\)"),
        (text(rows=["H 0 0 0 0 0 0", "H 0 0 1e-5 0 0 0"]), "atoms must be at least 0.001 Å apart"),
        (text().replace("F F F", "T T T"), "non-zero volume"),
        (text().replace("energy", 'REF_stress="1 2 3" energy'), "stress must have 6, 9 or 3x3"),
        (text().replace("H 0.0 0.0 0.75", "Qq 0.0 0.0 0.75"), "readable by ASE"),
        (text().replace("H 0.0 0.0 0.75", "H 0.0 zero 0.75"), "readable by ASE"),
        (text().replace("2\n", "two\n", 1), "line 5 must be a number of atoms"),
    ],
)
def test_bad_frames_are_refused_by_file_and_frame(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"data.xyz, frame 1: .*{message}"):
        read(file(tmp_path, text() + content))
