"""Molecular dynamics: energy is conserved, temperature is right, and files survive a kill."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.harmonic import HarmonicCalculator, HarmonicForceField
from ase.io import read

from eqtp.cli import main
from eqtp.models import md
from eqtp.models.calculator import Calculator
from eqtp.models.io import save
from eqtp.models.md import molecular_dynamics
from eqtp.models.training.data import from_ase
from eqtp.models.training.datasets import load_named

TOLERANCES = {
    "momentum": 1e-10,  # rounding of sums over a few hundred steps
    "age": 1e-12,  # eV/Å: the same edges, whatever the age of the list
    "drift": 0.1,  # meV/atom/ps, the bar of issue 2
}


@pytest.fixture
def calculator(morse: Any) -> Calculator:
    return Calculator(morse, device="cpu")


@pytest.fixture
def relaxed(calculator: Calculator) -> Atoms:
    """Ethanol's nine atoms at a minimum of the Morse potential."""
    from ase.optimize import BFGS

    atoms: Atoms = molecule("CH3CH2OH")
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=500)
    return atoms


def test_nve_conserves_energy_and_momenta(relaxed: Atoms, calculator: Calculator) -> None:
    result = molecular_dynamics(relaxed, calculator, steps=800, timestep=0.25)
    assert abs(result.drift) < TOLERANCES["drift"]
    assert result.fluctuation < 0.05 * result.kinetic_energy.std() * 1000 / len(relaxed)
    assert np.abs(result.atoms.get_momenta().sum(axis=0)).max() < TOLERANCES["momentum"]
    assert np.abs(result.atoms.get_angular_momentum()).max() < TOLERANCES["momentum"]
    assert np.allclose(result.temperature, 2 * result.kinetic_energy / (21 * units.kB))


def test_the_error_of_the_energy_is_of_second_order(relaxed: Atoms, calculator: Calculator) -> None:
    run = {
        dt: molecular_dynamics(
            relaxed, calculator, steps=int(60 / dt), timestep=dt, interval=int(2 / dt)
        )
        for dt in (0.25, 0.5)
    }
    assert run[0.5].fluctuation / run[0.25].fluctuation == pytest.approx(4, rel=0.2)


def test_a_run_with_the_cached_list_has_the_forces_of_one_without(
    relaxed: Atoms, morse: Any
) -> None:
    """Along one trajectory; two trajectories would part by chaos."""
    cached = Calculator(morse, skin=0.5)
    fresh: Any = Calculator(morse, skin=0.0)
    atoms = relaxed.copy()
    atoms.calc = cached
    run = md._integrator(atoms, "nvt", 2000.0, 1.0, 0.05, np.random.default_rng(0))
    for _ in run.irun(100):
        expected = fresh.get_property("forces", atoms)
        assert np.abs(atoms.get_forces() - expected).max() < TOLERANCES["age"]
    assert fresh.verlet_list.num_builds == 101
    assert 1 < cached.verlet_list.num_builds < 40


STIFFNESS = 2.0  # eV/Å^2


def einstein_crystal(stiffness: float = STIFFNESS) -> tuple[Atoms, HarmonicCalculator]:
    """Argon atoms, each bound to its site."""
    atoms = bulk("Ar", cubic=True) * (2, 2, 1)
    hessian = stiffness * np.eye(3 * len(atoms))
    field = HarmonicForceField(
        ref_atoms=atoms.copy(), ref_energy=0.0, hessian_x=hessian, cartesian=True
    )
    return atoms, HarmonicCalculator(field)


def test_an_oscillator_is_back_after_its_period() -> None:
    """The units of time, mass and energy: T = 2 pi sqrt(m / k)."""
    atoms, calculator = einstein_crystal()
    mass = atoms.get_masses()[0] * units._amu
    stiffness = STIFFNESS * units._e * 1e20
    period = 2 * np.pi * np.sqrt(mass / stiffness) * 1e15
    run = molecular_dynamics(atoms, calculator, steps=400, timestep=period / 400, interval=100)
    assert np.allclose(run.atoms.positions, atoms.positions, rtol=0, atol=1e-4)
    turned = run.kinetic_energy[[0, 2, 4]]
    assert np.allclose(turned, turned[0], rtol=1e-3)
    assert run.kinetic_energy[1] < 1e-3 * turned[0]


def test_langevin_reaches_the_temperature() -> None:
    """Equipartition: kinetic and potential energy are 3/2 N kB T each."""
    atoms, calculator = einstein_crystal()
    result = molecular_dynamics(
        atoms, calculator, ensemble="nvt", temperature=200, timestep=4.0, steps=4000, friction=0.02,
        seed=3,
    )  # fmt: skip
    settled = slice(len(result.time) // 8, None)
    # 48 modes over some 200 correlation times: a standard error of 1.5 %.
    assert result.temperature[settled].mean() == pytest.approx(200, rel=0.06)
    expected = 3 / 2 * len(atoms) * units.kB * 200
    assert result.potential_energy[settled].mean() == pytest.approx(expected, rel=0.06)


def test_friction_slows_by_its_rate() -> None:
    """Without forces and at 0 K, v(t) = v(0) exp(-friction t)."""
    atoms, calculator = einstein_crystal(stiffness=0.0)
    atoms.set_momenta(np.ones((len(atoms), 3)))
    run = molecular_dynamics(
        atoms, calculator, ensemble="nvt", temperature=0.0, timestep=0.5, friction=0.02, steps=100,
        keep_velocities=True,
    )  # fmt: skip
    assert np.allclose(run.atoms.get_momenta(), np.exp(-1.0), rtol=1e-3)


def test_initial_velocities_have_the_temperature_and_no_rigid_motion() -> None:
    rng, temperatures = np.random.default_rng(0), []
    for _ in range(400):
        atoms = molecule("CH3CH2OH")
        md._draw_momenta(atoms, 300.0, rng)
        assert md._remove_rigid_motion(atoms) == 6
        assert np.abs(atoms.get_momenta().sum(axis=0)).max() < TOLERANCES["momentum"]
        assert np.abs(atoms.get_angular_momentum()).max() < TOLERANCES["momentum"]
        temperatures.append(2 * atoms.get_kinetic_energy() / (21 * units.kB))
    # One draw scatters by sqrt(2/21) = 31 %, the mean of 400 by 1.5 %.
    assert np.mean(temperatures) == pytest.approx(300, rel=0.05)


@pytest.mark.parametrize(
    ("atoms", "modes"),
    [
        (Atoms("Ar"), 3),
        (molecule("CO2"), 5),
        (molecule("N2"), 5),
        (molecule("H2O"), 6),
        (bulk("Cu", cubic=True), 3),
    ],
)
def test_rigid_modes_are_counted(atoms: Atoms, modes: int) -> None:
    md._draw_momenta(atoms, 300.0, np.random.default_rng(0))
    assert md._remove_rigid_motion(atoms) == modes
    assert np.isfinite(atoms.get_momenta()).all()
    if not atoms.pbc.any():
        assert np.abs(atoms.get_angular_momentum()).max() < TOLERANCES["momentum"]


def test_a_seed_repeats_a_run_and_the_start_is_left_alone(
    relaxed: Atoms, calculator: Calculator
) -> None:
    before = relaxed.copy()
    settings: dict[str, Any] = {"ensemble": "nvt", "steps": 20, "interval": 1}
    first = molecular_dynamics(relaxed, calculator, seed=1, **settings)
    again = molecular_dynamics(relaxed, calculator, seed=1, **settings)
    other = molecular_dynamics(relaxed, calculator, seed=2, **settings)
    assert np.array_equal(first.total_energy, again.total_energy)
    assert not np.allclose(first.total_energy, other.total_energy, rtol=0, atol=1e-6)
    assert relaxed == before
    assert not relaxed.has("momenta")


def test_velocities_can_be_kept(relaxed: Atoms, calculator: Calculator) -> None:
    whole = molecular_dynamics(relaxed, calculator, steps=40, interval=20)
    half = molecular_dynamics(relaxed, calculator, steps=20, interval=20)
    rest = molecular_dynamics(half.atoms, calculator, steps=20, interval=20, keep_velocities=True)
    assert np.allclose(rest.atoms.positions, whole.atoms.positions, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="structure without momenta"):
        molecular_dynamics(relaxed, calculator, steps=1, keep_velocities=True)


def test_constraints_are_kept(relaxed: Atoms, calculator: Calculator) -> None:
    from ase.constraints import FixAtoms

    relaxed.set_constraint(FixAtoms([0, 1]))
    result = molecular_dynamics(relaxed, calculator, steps=20, interval=20)
    assert np.array_equal(result.atoms.positions[:2], relaxed.positions[:2])
    expected = 2 * result.kinetic_energy / (21 * units.kB)
    assert np.allclose(result.temperature, expected)


def command(*arguments: str | Path) -> int:
    return main(["md", *(str(argument) for argument in arguments)])


@pytest.fixture
def files(morse: Any, relaxed: Atoms, tmp_path: Path) -> tuple[Path, Path]:
    save(morse, tmp_path / "model.safetensors")
    relaxed.write(tmp_path / "ethanol.xyz")
    return tmp_path / "model.safetensors", tmp_path / "ethanol.xyz"


def test_the_command_writes_everything(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert command(*files, "--time", "0.02", "--interval", "5", "--output", out) == 0
    with (out / "energies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["time_fs"]) for row in rows] == [2.5 * k for k in range(9)]
    frames = read(out / "trajectory.xyz", ":")
    assert len(frames) == 9
    for row, frame in zip(rows, frames, strict=True):
        assert frame.get_potential_energy() == pytest.approx(float(row["potential_eV"]))
        kinetic = float(row["kinetic_eV"])
        assert frame.get_kinetic_energy() == pytest.approx(kinetic, rel=1e-5)
        assert frame.info["time_fs"] == float(row["time_fs"])
    assert (out / "energies.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "meV/atom/ps" in printed.out
    assert "ns/day" in printed.out
    assert str(out / "trajectory.xyz") in printed.out
    assert "40/40" in printed.err, "the progress bar"


def test_the_command_picks_a_frame_and_continues(files: tuple[Path, Path], tmp_path: Path) -> None:
    command(*files, "--steps", "10", "--output", tmp_path / "a")
    trajectory = f"{tmp_path / 'a' / 'trajectory.xyz'}@0"
    command(files[0], trajectory, "--keep-velocities", "--steps", "10", "--output", tmp_path / "b")
    ends: list[Any] = [read(tmp_path / name / "trajectory.xyz") for name in "ab"]
    # The file holds eight digits.
    assert np.allclose(ends[0].positions, ends[1].positions, rtol=0, atol=1e-6)


def test_a_run_that_dies_keeps_its_records(
    relaxed: Atoms, calculator: Calculator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk is looked at before the files are closed."""
    evaluate = calculator.model.forward
    calls: list[int] = []
    kept: list[int] = []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 25:  # step 23
            kept.append(len(read(tmp_path / "trajectory.xyz", ":")))
            kept.append(len((tmp_path / "energies.csv").read_text().splitlines()))
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(calculator.model, "forward", dying)
    relaxed.rattle(0.01)
    with pytest.raises(KeyboardInterrupt):
        molecular_dynamics(relaxed, calculator, steps=50, interval=5, output=tmp_path)
    assert kept == [5, 6]


def test_an_older_run_is_not_overwritten(
    relaxed: Atoms, calculator: Calculator, tmp_path: Path
) -> None:
    molecular_dynamics(relaxed, calculator, steps=2, output=tmp_path)
    before = (tmp_path / "energies.csv").read_bytes()
    with pytest.raises(FileExistsError, match=r"must not hold a run already.*another folder"):
        molecular_dynamics(relaxed, calculator, steps=2, output=tmp_path)
    assert (tmp_path / "energies.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ensemble": "npt"}, "one of nve, nvt, got 'npt'"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"temperature": float("nan")}, "temperature must not be negative"),
        ({"timestep": 0.0}, "timestep must be positive"),
        ({"ensemble": "nvt", "friction": 0.0}, "friction must be positive"),
        ({"steps": 0}, "at least 1, got steps=0"),
        ({"interval": 0}, "interval=0"),
    ],
)
def test_bad_settings_are_refused(
    calculator: Calculator, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        molecular_dynamics(molecule("H2O"), calculator, output=out, **({"steps": 1} | settings))
    assert not out.exists()


def test_bad_files_are_refused_by_the_command(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(files[0], tmp_path / "absent.xyz", "--steps", "1") == 2
    assert re.search(r"structure file must exist.*absent\.xyz", capsys.readouterr().err)
    assert command(tmp_path / "absent.safetensors", files[1], "--steps", "1") == 2
    assert "a model file must exist" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--timestep", "--time", "--friction"])
def test_bad_numbers_are_refused_by_the_command(
    files: tuple[Path, Path], argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(*files, argument, "-1")
    assert f"argument {argument}: must be a positive number, got -1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_mace_conserves_the_energy_of_3bpa(mace: Any) -> None:
    """NVE at 300 K, 0.5 fs, float64, 2 ps: drift below 0.1 meV/atom/ps."""
    splits = load_named("3bpa", download=False)
    settle(mace, splits.train)
    result = molecular_dynamics(splits.train[0], Calculator(mace), steps=4000)
    assert 150 < result.temperature.mean() < 600, "the molecule must stay whole"
    assert abs(result.drift) < TOLERANCES["drift"]


def settle(model: Any, frames: list[Atoms], steps: int = 1500) -> None:
    """Trains on forces just long enough that the molecule holds together."""
    batches = [from_ase(frames[i : i + 5], model.r_max) for i in range(0, 300, 5)]
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=steps)
    for step in range(steps):
        batch = batches[step % len(batches)]
        optimiser.zero_grad()
        loss = (model(batch)["forces"] - batch.forces).square().mean()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert float(loss.detach()) < 0.15**2, "eV/Å"
