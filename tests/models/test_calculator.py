"""The ASE calculator: right derivatives, a neighbour list whose age never shows, clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError

from eqtp.models.calculator import Calculator, VerletList
from eqtp.models.io import save
from eqtp.models.training.data import from_ase
from eqtp.models.training.neighbors import neighbor_list

TOLERANCES = {
    "gradient": 1e-6,  # central difference, step 1e-4: error of second order, 1e-8 times E'''
    "age": 1e-12,  # the same edges in the same order: rounding of positions only
    "float32": 1e-5,  # relative, energies of 1e3 eV are summed in float64
}


def crystal(seed: int = 0) -> Atoms:
    """A rattled triclinic crystal whose cell is smaller than twice the cutoff."""
    atoms: Atoms = bulk("C", "diamond", a=3.9) * (2, 1, 1)
    atoms.numbers[0] = 8
    strain = np.eye(3) + 0.05 * np.random.default_rng(seed).standard_normal((3, 3))
    atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def slab() -> Atoms:
    atoms = crystal()
    atoms.pbc = (True, True, False)
    return atoms


def ethanol() -> Atoms:
    atoms: Atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    return atoms


STRUCTURES = {"molecule": ethanol, "crystal": crystal, "slab": slab}


@pytest.fixture
def calculator(morse: Any) -> Calculator:
    return Calculator(morse, device="cpu")


@pytest.fixture(params=["morse", "mace"])
def any_calculator(request: pytest.FixtureRequest) -> Calculator:
    return Calculator(request.getfixturevalue(request.param), device="cpu")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_forces_are_the_gradient_of_the_energy(any_calculator: Calculator, structure: str) -> None:
    atoms = STRUCTURES[structure]()
    atoms.calc = any_calculator
    forces, step = atoms.get_forces(), 1e-4
    for index, axis in [(0, 0), (1, 2), (2, 1)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index, axis] += sign * step
            moved.calc = any_calculator
            energies.append(moved.get_potential_energy())
        expected = -(energies[0] - energies[1]) / (2 * step)
        assert forces[index, axis] == pytest.approx(expected, abs=TOLERANCES["gradient"])


@pytest.mark.parametrize("structure", ["crystal", "slab"])
def test_stress_is_the_strain_derivative_in_voigt_order(
    any_calculator: Calculator, structure: str
) -> None:
    atoms = STRUCTURES[structure]()
    atoms.calc = any_calculator
    stress, step = atoms.get_stress(), 1e-4
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
            strained.calc = any_calculator
            energies.append(strained.get_potential_energy())
        expected = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert stress[k] == pytest.approx(expected, abs=TOLERANCES["gradient"])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_it_is_the_model_on_the_graph_of_from_ase(morse: Any, structure: str) -> None:
    atoms = STRUCTURES[structure]()
    expected = morse(from_ase(atoms, morse.r_max))
    atoms.calc = Calculator(morse, device="cpu")
    assert atoms.get_potential_energy() == expected["energy"].item()
    forces = expected["forces"].detach().numpy()
    assert np.allclose(atoms.get_forces(), forces, rtol=0, atol=TOLERANCES["age"])


def test_every_property_of_one_evaluation(calculator: Calculator) -> None:
    atoms = crystal()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    results = calculator.results
    assert set(results) == set(calculator.implemented_properties)
    assert atoms.get_potential_energy(force_consistent=True) == energy
    assert atoms.get_potential_energies().sum() == pytest.approx(energy)
    assert atoms.get_forces().dtype == np.float64
    assert calculator.results is results, "a second evaluation took place"


def test_a_molecule_has_no_stress(calculator: Calculator) -> None:
    atoms = ethanol()
    atoms.calc = calculator
    with pytest.raises(PropertyNotImplementedError, match=r"stress needs a periodic cell"):
        atoms.get_stress()
    atoms.get_forces()
    assert "stress" not in calculator.results


def brute_force(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, r_max: float) -> Any:
    src, dst, image = neighbor_list(positions, cell, pbc, r_max)
    return torch.from_numpy(src), torch.from_numpy(dst), torch.from_numpy(image @ cell)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("skin", [0.0, 0.3, 1.0])
def test_the_list_equals_a_fresh_one_along_a_walk(structure: str, skin: float) -> None:
    atoms, rng = STRUCTURES[structure](), np.random.default_rng(1)
    pairs = VerletList(r_max=3.0, skin=skin)
    steps = 60
    for _ in range(steps):
        atoms.positions += 0.03 * rng.standard_normal(atoms.positions.shape)
        found = pairs(atoms.positions, atoms.cell.array, atoms.pbc)
        expected = brute_force(atoms.positions, atoms.cell.array, atoms.pbc, 3.0)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
    assert pairs.num_builds == steps if skin == 0 else 1 < pairs.num_builds < steps / 2


def test_an_atom_that_crosses_the_skin_makes_the_list_stale() -> None:
    cell, pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    positions = np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])  # beyond r_max + skin
    pairs = VerletList(r_max=3.0, skin=0.5)
    assert len(pairs(positions, cell, pbc)[0]) == 0
    positions[1, 0] = 3.76  # within the half skin of where it was
    assert len(pairs(positions, cell, pbc)[0]) == 0
    assert pairs.num_builds == 1
    positions[1, 0] = 2.9
    assert len(pairs(positions, cell, pbc)[0]) == 2
    assert pairs.num_builds == 2


def test_a_change_of_cell_periodicity_or_size_makes_the_list_stale() -> None:
    atoms, pairs = crystal(), VerletList(r_max=3.0, skin=0.5)

    def check() -> None:
        found = pairs(atoms.positions, atoms.cell.array, atoms.pbc)
        expected = brute_force(atoms.positions, atoms.cell.array, atoms.pbc, 3.0)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    check()
    atoms.cell[0, 0] += 1e-3
    check()
    atoms.pbc[1] = False
    check()
    del atoms[2]
    check()
    assert pairs.num_builds == 4


def test_changes_of_the_callers_arrays_do_not_reach_the_list() -> None:
    positions, cell, pbc = np.zeros((1, 3)), 2.0 * np.eye(3), np.ones(3, dtype=bool)
    pairs = VerletList(r_max=2.5, skin=0.1)
    pairs(positions, cell, pbc)
    cell *= 2
    assert len(pairs(positions, cell, pbc)[0]) == 0


def test_swapped_elements_are_seen(calculator: Calculator) -> None:
    atoms = ethanol()
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    atoms.numbers[[0, 2]] = atoms.numbers[[2, 0]]
    fresh = atoms.copy()
    fresh.calc = Calculator(calculator.model, device="cpu")
    assert atoms.get_potential_energy() == fresh.get_potential_energy() != before
    assert calculator.verlet_list.num_builds == 1


def test_one_calculator_serves_many_structures(calculator: Calculator, morse: Any) -> None:
    for make in [ethanol, crystal, slab, ethanol]:
        atoms, fresh = make(), make()
        atoms.calc, fresh.calc = calculator, Calculator(morse, device="cpu", skin=0.0)
        assert np.allclose(atoms.get_forces(), fresh.get_forces(), rtol=0, atol=TOLERANCES["age"])


def test_a_file_and_a_model_give_the_same(morse: Any, tmp_path: Path) -> None:
    save(morse, tmp_path / "model.safetensors")
    energies = []
    for source in (morse, tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        atoms = ethanol()
        atoms.calc = Calculator(source)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1] == energies[2]


def test_the_callers_model_is_left_alone(morse: Any) -> None:
    calculator = Calculator(morse, dtype=torch.float32)
    assert morse.training
    assert all(p.requires_grad and p.dtype == torch.float64 for p in morse.parameters())
    assert not calculator.model.training
    assert not any(p.requires_grad for p in calculator.model.parameters())


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_float32_agrees_to_its_precision(morse: Any, dtype: Any) -> None:
    low, high = crystal(), crystal()
    low.calc, high.calc = Calculator(morse, dtype=dtype), Calculator(morse)
    assert low.calc.dtype == torch.float32
    scale = np.abs(high.get_forces()).max()
    difference = np.abs(low.get_forces() - high.get_forces()).max()
    assert 0 < difference < TOLERANCES["float32"] * scale
    assert low.get_forces().dtype == np.float64


def test_atoms_out_of_reach_of_each_other(calculator: Calculator) -> None:
    atoms = Atoms("HC", [[0, 0, 0], [50, 0, 0]], calculator=calculator)
    assert atoms.get_potential_energy() == pytest.approx(-13.6 - 1029.1)
    assert not atoms.get_forces().any()


def broken(**changes: Any) -> Atoms:
    atoms = ethanol()
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


def with_position(value: Any) -> Atoms:
    atoms = ethanol()
    atoms.positions[3] = value
    return atoms


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), r"at least one atom, got an empty Atoms object"),
        (Atoms("CU"), r"trained on \(H, C, N, O\), got U"),
        (with_position([0, np.nan, 0]), r"positions must be finite, got .*nan.* for atom 3 \(H\)"),
        (with_position(np.inf), r"positions must be finite"),
        (
            with_position(ethanol().positions[1]),
            r"at least 0\.001 Å apart, got .* between atoms (1 and 3|3 and 1)",
        ),
        (broken(pbc=True, cell=[5, np.nan, 5]), r"cell must be finite"),
        (broken(pbc=True), r"non-zero volume"),
        (broken(pbc=True, cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]]), r"non-zero volume"),
    ],
)
def test_bad_structures_are_refused(calculator: Calculator, atoms: Atoms, message: str) -> None:
    atoms.calc = calculator
    with pytest.raises(ValueError, match=message):
        atoms.get_potential_energy()
    good = ethanol()
    good.calc = calculator
    assert np.isfinite(good.get_forces()).all(), "an error must not poison the next structure"


def test_bad_settings_are_refused(morse: Any) -> None:
    with pytest.raises(ValueError, match=r"floating-point type, got 'int32'"):
        Calculator(morse, dtype="int32")
    with pytest.raises(ValueError, match=r"skin not negative .* skin=-1"):
        Calculator(morse, skin=-1)
