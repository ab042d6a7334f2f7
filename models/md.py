"""Molecular dynamics with a potential: `molecular_dynamics` and the command `eqtp md`.

Time integration is ASE's: velocity Verlet for NVE, Langevin (Vanden-Eijnden and Ciccotti, Chem.
Phys. Lett. 429, 310 (2006)) for NVT. Units: Å, eV, fs, K.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator

ENSEMBLES = ("nve", "nvt")
TRAJECTORY, ENERGIES, PLOT = "trajectory.xyz", "energies.csv", "energies.png"
COLUMNS = ("time_fs", "potential_eV", "kinetic_eV", "total_eV", "temperature_K")


@dataclass(frozen=True)
class MDResult:
    """What a run recorded every `interval` steps, its start included.

    Attributes:
        atoms: The structure at the end, with its momenta.
        time: fs.
        potential_energy: eV.
        kinetic_energy: eV.
        temperature: K, of the degrees of freedom that move.
        seconds_per_step: Wall-clock time of a step.
    """

    atoms: Atoms
    time: np.ndarray
    potential_energy: np.ndarray
    kinetic_energy: np.ndarray
    temperature: np.ndarray
    seconds_per_step: float

    @property
    def total_energy(self) -> np.ndarray:
        """Potential plus kinetic energy, eV; NVE conserves it."""
        total: np.ndarray = self.potential_energy + self.kinetic_energy
        return total

    @property
    def drift(self) -> float:
        """Slope of the line fitted to the total energy, meV/atom/ps; NaN below three records."""
        if len(self.time) < 3:
            return float("nan")
        slope = np.polyfit(self.time / 1000, self.total_energy - self.total_energy[0], 1)[0]
        return float(1000 * slope / len(self.atoms))

    @property
    def fluctuation(self) -> float:
        """Standard deviation of the total energy, meV/atom."""
        return float(1000 * self.total_energy.std() / len(self.atoms))


def molecular_dynamics(
    atoms: Atoms,
    calculator: BaseCalculator,
    *,
    steps: int,
    ensemble: str = "nve",
    temperature: float = 300.0,
    timestep: float = 0.5,
    friction: float = 0.01,
    seed: int = 0,
    interval: int = 10,
    keep_velocities: bool = False,
    output: str | Path | None = None,
    progress: bool = False,
) -> MDResult:
    """Runs molecular dynamics and records energies and temperature.

    The start has no net momentum and, for a molecule, no angular momentum. NVE conserves both,
    so its temperature counts 3N - 3 (periodic) or 3N - 6 (molecule) degrees of freedom; under
    NVT all 3N take part. Constraints of `atoms` are kept and counted instead.

    Args:
        atoms: The start; it is left as it is.
        calculator: Any ASE calculator, such as `eqtp.Calculator`.
        steps: Number of time steps.
        ensemble: "nve", or "nvt" (Langevin).
        temperature: Of the initial velocities (Maxwell-Boltzmann) and of the thermostat, K.
        timestep: fs; 0.5 suits molecules with hydrogen.
        friction: Of the thermostat, 1/fs; unused under NVE.
        seed: Of the initial velocities and the thermostat.
        interval: Steps from one record to the next.
        keep_velocities: Start from the momenta of `atoms` instead of random ones.
        output: Folder for `trajectory.xyz` (extended XYZ), `energies.csv` and `energies.png`.
            Every record is on disk as soon as it is made: a run that is killed loses none.
        progress: Show a bar with the time left.

    Raises:
        ValueError: A setting is out of range, or there are no momenta to keep.
        FileExistsError: `output` already holds a run.

    Example:
        >>> from ase.build import bulk
        >>> from ase.calculators.emt import EMT
        >>> run = molecular_dynamics(bulk("Cu", cubic=True), EMT(), steps=20, timestep=2.0)
        >>> len(run.time), bool(abs(run.drift) < 1.0)
        (3, True)
    """
    _check_settings(ensemble, temperature, timestep, friction, steps, interval)
    if keep_velocities and not atoms.has("momenta"):
        raise ValueError(
            "velocities can be kept only where there are some, got a structure without momenta:"
            " leave keep_velocities off"
        )
    start: Atoms = atoms.copy()
    rng = np.random.default_rng(seed)
    if not keep_velocities:
        _draw_momenta(start, temperature, rng)
    frozen = 0
    if not start.constraints and (ensemble == "nve" or not keep_velocities):
        frozen = _remove_rigid_motion(start)
    degrees = start.get_number_of_degrees_of_freedom()
    start.calc = calculator
    recorder = _Recorder(start, max(degrees - (frozen if ensemble == "nve" else 0), 1))
    dynamics = _integrator(start, ensemble, temperature, timestep, friction, rng)
    with ExitStack() as files:
        if output is not None:
            recorder.write_to(Path(output), files)
        began = time.perf_counter()
        for step in _with_progress(dynamics.irun(steps), steps, recorder, progress):
            if step % interval == 0:
                recorder.record(step * timestep)
        seconds = (time.perf_counter() - began) / steps
    result = recorder.result(seconds)
    if output is not None:
        _plot(result, Path(output) / PLOT)
    return result


def _check_settings(
    ensemble: str, temperature: float, timestep: float, friction: float, steps: int, interval: int
) -> None:
    if ensemble not in ENSEMBLES:
        raise ValueError(f"ensemble must be one of {', '.join(ENSEMBLES)}, got {ensemble!r}")
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative (K), got {temperature}")
    if not timestep > 0:
        raise ValueError(f"timestep must be positive (fs), got {timestep}")
    if ensemble == "nvt" and not friction > 0:
        raise ValueError(f"friction must be positive under nvt (1/fs), got {friction}")
    if steps < 1 or interval < 1:
        raise ValueError(
            f"steps and interval must be at least 1, got steps={steps}, interval={interval}"
        )


def _draw_momenta(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Momenta from the Maxwell-Boltzmann distribution, p_i ~ N(0, m_i kB T)."""
    from ase import units

    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    atoms.set_momenta(momenta)


def _remove_rigid_motion(atoms: Atoms) -> int:
    """Stops translation and, for a molecule, rotation; returns how many modes were stopped.

    The angular velocity w solves I w = L with the inertia tensor I, whose null space for a linear
    molecule is left out by the pseudo-inverse.
    """
    masses = atoms.get_masses()[:, None]
    momenta = atoms.get_momenta()
    velocities = momenta / masses - momenta.sum(axis=0) / masses.sum()
    rotations = 0
    if not atoms.pbc.any():
        center = (masses * atoms.positions).sum(axis=0) / masses.sum()
        arms = atoms.positions - center
        inertia = np.einsum("ni,nj->ij", masses * arms, -arms)
        inertia -= np.trace(inertia) * np.eye(3)
        angular_momentum = np.cross(arms, masses * velocities).sum(axis=0)
        # 1e-6: the arms of a linear molecule in a file with six digits give an eigenvalue ratio
        # of 1e-12, a molecule that is bent by a degree one of 1e-4.
        omega = np.linalg.pinv(inertia, rcond=1e-6, hermitian=True) @ angular_momentum
        velocities -= np.cross(omega, arms)
        rotations = int(np.linalg.matrix_rank(inertia, tol=1e-6 * np.trace(inertia)))
    atoms.set_momenta(masses * velocities)
    return 3 + rotations


def _integrator(
    atoms: Atoms,
    ensemble: str,
    temperature: float,
    timestep: float,
    friction: float,
    rng: np.random.Generator,
) -> Any:
    """ASE's integrator; Langevin without `fixcm`, which does not sample NVT strictly."""
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.verlet import VelocityVerlet

    if ensemble == "nve":
        return VelocityVerlet(atoms, timestep * units.fs)
    return Langevin(
        atoms,
        timestep * units.fs,
        temperature_K=temperature,
        friction=friction / units.fs,
        fixcm=False,
        rng=rng,
    )


class _Recorder:
    """Rows of energies and temperature, in memory and, if wanted, on disk."""

    def __init__(self, atoms: Atoms, degrees: int) -> None:
        self.atoms = atoms
        self.degrees = degrees
        self.rows: list[tuple[float, float, float, float, float]] = []
        self._files: tuple[TextIO, TextIO] | None = None

    def write_to(self, folder: Path, files: ExitStack) -> None:
        """Opens the files in `folder`; `files` closes them."""
        held = [name for name in (TRAJECTORY, ENERGIES, PLOT) if (folder / name).exists()]
        if held:
            raise FileExistsError(
                f"the output folder must not hold a run already, got '{folder}' with"
                f" {', '.join(held)}: name another folder or move these away"
            )
        folder.mkdir(parents=True, exist_ok=True)
        trajectory = files.enter_context((folder / TRAJECTORY).open("x"))
        energies = files.enter_context((folder / ENERGIES).open("x", newline=""))
        csv.writer(energies).writerow(COLUMNS)
        self._files = trajectory, energies

    def record(self, time_fs: float) -> None:
        """Adds the present state."""
        from ase import units

        potential = float(self.atoms.get_potential_energy())
        kinetic = float(self.atoms.get_kinetic_energy())
        temperature = 2 * kinetic / (self.degrees * units.kB)
        row = (time_fs, potential, kinetic, potential + kinetic, temperature)
        self.rows.append(row)
        if self._files:
            trajectory, energies = self._files
            self._write_frame(trajectory, time_fs)
            trajectory.flush()
            csv.writer(energies).writerow(row)
            energies.flush()

    def _write_frame(self, file: TextIO, time_fs: float) -> None:
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.io import write

        frame = self.atoms.copy()
        calculator: Any = self.atoms.calc
        results = calculator.results
        kept = {key: results[key] for key in ("energy", "forces", "stress") if key in results}
        frame.calc = SinglePointCalculator(frame, **kept)
        frame.info["time_fs"] = time_fs
        write(file, frame, format="extxyz")

    def result(self, seconds_per_step: float) -> MDResult:
        """Everything recorded, as arrays."""
        table = np.array(self.rows)
        return MDResult(
            atoms=self.atoms,
            time=table[:, 0],
            potential_energy=table[:, 1],
            kinetic_energy=table[:, 2],
            temperature=table[:, 4],
            seconds_per_step=seconds_per_step,
        )


def _with_progress(
    run: Iterator[Any], steps: int, recorder: _Recorder, progress: bool
) -> Iterator[int]:
    """Step numbers 0 .. steps while `run` proceeds, under a bar with the time left."""
    from tqdm import tqdm

    with tqdm(total=steps, unit="step", disable=not progress, dynamic_ncols=True) as bar:
        for step, _ in enumerate(run):
            yield step
            if step:
                bar.update()
            if progress and recorder.rows:
                _, _, _, total, temperature = recorder.rows[-1]
                bar.set_postfix_str(f"E={total:.4f} eV, T={temperature:.0f} K", refresh=False)


def _plot(result: MDResult, path: Path) -> None:
    """Energies per atom, relative to the start, and temperature against time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    picoseconds = result.time / 1000
    for energy, label in [
        (result.potential_energy, "potential"),
        (result.kinetic_energy, "kinetic"),
        (result.total_energy, "total"),
    ]:
        top.plot(picoseconds, 1000 * (energy - energy[0]) / len(result.atoms), label=label, lw=0.8)
    top.set_ylabel("change of energy [meV/atom]")
    top.legend(loc="upper right", ncols=3)
    bottom.plot(picoseconds, result.temperature, color="tab:red", lw=0.8)
    bottom.axhline(result.temperature.mean(), color="black", ls="--", lw=0.8)
    bottom.set(xlabel="time [ps]", ylabel="temperature [K]")
    figure.savefig(path, dpi=150)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `eqtp md`."""
    add = parser.add_argument
    add("model", help="a model file (.safetensors) or the folder of a run")
    add("structure", help="a file ASE reads; FILE@INDEX picks a frame, the last one by default")
    add("--ensemble", choices=ENSEMBLES, default="nve", help="nvt is Langevin (default: nve)")
    add("--temperature", type=float, default=300.0, help="K (default: 300)")
    add("--timestep", type=_positive, default=0.5, help="fs (default: 0.5)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="number of time steps")
    length.add_argument("--time", type=_positive, default=1.0, help="of the run, ps (default: 1)")
    add("--friction", type=_positive, default=0.01, help="of the thermostat, 1/fs (default: 0.01)")
    add("--seed", type=int, default=0, help="of velocities and thermostat (default: 0)")
    add("--interval", type=int, default=10, help="steps between records (default: 10)")
    add("--keep-velocities", action="store_true", help="start from the structure's momenta")
    add("--output", type=Path, default=Path("md"), help="folder to write (default: md)")
    add("--device", default="auto", help='"auto" (default), "cpu", "cuda", ...')
    add("--dtype", choices=["float32", "float64"], help="(default: as the model was saved)")


def _positive(text: str) -> float:
    """A positive number from the command line; argparse names the argument where it is not."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def run(args: argparse.Namespace) -> int:
    """Runs `eqtp md`; returns the exit status.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: As `load`, ASE's reader and
            `molecular_dynamics` raise them.
    """
    from ase.io import read

    from eqtp.models.calculator import Calculator

    names = (args.structure, args.structure.rpartition("@")[0])
    if not any(Path(name).is_file() for name in names):
        raise FileNotFoundError(f"a structure file must exist, got '{args.structure}'")
    atoms: Any = read(args.structure)
    steps = round(1000 * args.time / args.timestep) if args.steps is None else args.steps
    result = molecular_dynamics(
        atoms,
        Calculator(args.model, device=args.device, dtype=args.dtype),
        steps=steps,
        ensemble=args.ensemble,
        temperature=args.temperature,
        timestep=args.timestep,
        friction=args.friction,
        seed=args.seed,
        interval=args.interval,
        keep_velocities=args.keep_velocities,
        output=args.output,
        progress=True,
    )
    sys.stdout.write(_summary(result, args.ensemble, args.timestep, args.output))
    return 0


def _summary(result: MDResult, ensemble: str, timestep: float, folder: Path) -> str:
    """What the command prints at its end."""
    per_day = 86400 / result.seconds_per_step * timestep * 1e-6
    lines = [
        f"{len(result.atoms)} atoms, {result.time[-1] / 1000:g} ps {ensemble.upper()}:"
        f" {1000 * result.seconds_per_step:.2f} ms/step, {per_day:.3g} ns/day",
        f"temperature       {result.temperature.mean():.1f} K"
        f" (standard deviation {result.temperature.std():.1f} K)",
    ]
    if ensemble == "nve":
        lines += [
            f"energy drift      {result.drift:+.4f} meV/atom/ps",
            f"total energy      fluctuates by {result.fluctuation:.4f} meV/atom",
        ]
    files = {"trajectory": TRAJECTORY, "energies": ENERGIES, "plot": PLOT}
    lines += [f"{label:17} {folder / name}" for label, name in files.items()]
    return "\n".join(lines) + "\n"
