"""Reference energies and the statistics of a training set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from eqtp.models.training.data import StructureDataset
from eqtp.models.training.statistics import atomic_energies, split_isolated, statistics

E0 = {1: -13.5, 6: -1029.0, 8: -2042.0}
TOLERANCES = {
    "formula": 1e-13,  # relative: means of tens of float64 numbers
    "fit": 1e-9,  # eV: least squares with energies of 4000 eV
}


def frames(seed: int = 0, energy_per_atom: float = -4.0) -> list[Atoms]:
    """Molecules whose energy is the sum of E0 and a constant per atom, with random forces."""
    rng = np.random.default_rng(seed)
    made = []
    for name in ("H2O", "CH4", "CO", "CO2", "CH3OH"):
        atoms = molecule(name)
        atoms.info["energy"] = sum(E0[z] + energy_per_atom for z in atoms.numbers)
        atoms.arrays["forces"] = rng.normal(size=(len(atoms), 3))
        made.append(atoms)
    return made


def isolated() -> list[Atoms]:
    return [Atoms([z], info={"energy": energy}) for z, energy in E0.items()]


def test_energies_of_isolated_atoms() -> None:
    assert atomic_energies("isolated", frames(), isolated()) == E0
    assert atomic_energies("isolated", [molecule("H2O")], isolated()) == {1: E0[1], 8: E0[8]}


def test_isolated_atoms_are_told_from_structures() -> None:
    periodic = Atoms("Cu", cell=[3, 3, 3], pbc=True)
    marked = Atoms("Cu", cell=[30, 30, 30], pbc=True, info={"config_type": "IsolatedAtom"})
    structures, atoms = split_isolated([*frames(), *isolated(), periodic, marked])
    assert structures == [*frames(), periodic]
    assert atoms == [*isolated(), marked]


def test_a_mapping_by_symbol_or_number() -> None:
    given: dict[str | int, float] = {"H": -13.5, 6: -1029.0, "8": -2042.0, "Fe": 1.0}
    assert atomic_energies(given, frames()) == E0
    with pytest.raises(ValueError, match="chemical symbol or atomic number, got 'Xx'"):
        atomic_energies({"Xx": 1.0}, frames())


@pytest.mark.parametrize("source", ["isolated", {"H": -13.5, "O": -2042.0}])
def test_a_missing_element_is_named(source: Any) -> None:
    with pytest.raises(ValueError, match="missing: C "):
        atomic_energies(source, frames(), [isolated()[0], isolated()[2]])


def test_isolated_atoms_must_agree_and_be_labelled() -> None:
    with pytest.raises(ValueError, match="isolated atoms of H must have one energy"):
        atomic_energies("isolated", frames(), [*isolated(), Atoms("H", info={"energy": -13.0})])
    with pytest.raises(ValueError, match=r"isolated atom C .* must have an energy label"):
        atomic_energies("isolated", frames(), [Atoms("C")])


def test_least_squares_recovers_additive_energies_and_warns() -> None:
    with pytest.warns(UserWarning, match=r"least squares to 5 total energies \(rank 3 of 3"):
        fitted = atomic_energies("average", frames(energy_per_atom=0.0))
    for z, energy in E0.items():
        assert fitted[z] == pytest.approx(energy, abs=TOLERANCES["fit"])
    with pytest.raises(ValueError, match="need energy labels"):
        atomic_energies("average", [molecule("H2O")])


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r'"isolated", "average" or a mapping of eV, got \'dft\''):
        atomic_energies("dft", frames())  # type: ignore[arg-type]


def test_scale_shift_and_neighbours_by_their_formulas() -> None:
    structures = frames()
    structures[0].info["energy"] += 3.0  # 1 eV per atom of water: shift is a mean of means
    found = statistics(StructureDataset(structures, 5.0), E0)
    forces = np.concatenate([atoms.arrays["forces"] for atoms in structures])
    assert found.scale == pytest.approx(np.sqrt((forces**2).mean()), rel=TOLERANCES["formula"])
    assert found.shift == pytest.approx(-4.0 + 1.0 / 5, rel=TOLERANCES["formula"])
    edges = sum(len(atoms) * (len(atoms) - 1) for atoms in structures)  # all within 5 Å
    assert found.avg_num_neighbors == edges / sum(map(len, structures))


def test_statistics_without_forces_use_the_spread_of_energies() -> None:
    structures = frames()
    for atoms in structures:
        del atoms.arrays["forces"]
    structures[0].info["energy"] += 3.0
    found = statistics(StructureDataset(structures, 5.0), E0)
    assert found.scale == pytest.approx(np.std([1.0, 0, 0, 0, 0]), rel=1e-9)
    assert statistics(StructureDataset([molecule("H2O")], 5.0), E0).scale == 1.0


def test_statistics_need_structures_and_energies() -> None:
    with pytest.raises(ValueError, match="at least one structure"):
        statistics([], E0)
    with pytest.raises(ValueError, match=r"atomic energy, got structure with \[1, 8\]"):
        statistics(StructureDataset(frames(), 5.0), {1: 0.0})
