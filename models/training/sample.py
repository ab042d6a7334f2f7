"""`eqtp sample`: from a molecule to a labelled data set, by GFN2-xTB molecular dynamics.

Method: Langevin dynamics of ASE (time step 0.5 fs, friction 0.02/fs) with the tight-binding
method GFN2-xTB (C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 2019, 15, 1652)
as computed by tblite. The labels belong to the positions as they stand in the file: positions
are rounded first and then labelled.
"""

# ASE is typed in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import lzma
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import ground_state_magnetic_moments
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from tqdm import tqdm

from eqtp.files import write_atomically
from eqtp.models.training.labels import attach_labels
from eqtp.models.training.reading import read

_METHOD = "GFN2-xTB"
_TIME_STEP = 0.5  # fs; the period of an X-H stretch is about 10 fs
_FRICTION = 0.02  # 1/fs: velocities forget within 50 fs
_DECIMALS = 6  # positions in the file, Å
# Self-consistency threshold of the labels relative to tblite's own. Forces of one 3BPA frame
# from two starting densities differ by 4e-4 eV/Å at 1, 5e-5 at 0.1 and 2e-6 at 0.01.
_LABEL_ACCURACY = 0.01
_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
}


@dataclass(frozen=True)
class Trajectories:
    """What is sampled at one temperature.

    Attributes:
        temperature: K.
        frames: number of frames over all trajectories.
        split: "train" or "test".
        count: number of independent trajectories, each from its own start.
        interval: time between frames, fs.
        equilibration: time before the first frame, fs.
    """

    temperature: float
    frames: int
    split: str
    count: int
    interval: float
    equilibration: float

    @property
    def num_steps(self) -> int:
        """Dynamics steps of all trajectories."""
        return self.frames * self.interval_steps + self.count * self.equilibration_steps

    @property
    def interval_steps(self) -> int:
        """Steps between two frames."""
        return max(1, round(self.interval / _TIME_STEP))

    @property
    def equilibration_steps(self) -> int:
        """Steps before the first frame."""
        return round(self.equilibration / _TIME_STEP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `eqtp sample`."""
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--smiles", help="the molecule; its geometry is made by rdkit")
    start.add_argument("--structure", type=Path, help="file with the geometry (any ASE reads)")
    parser.add_argument("--output", type=Path, required=True, help="*.xyz, or *.xyz.xz/.gz/.bz2")
    parser.add_argument("--temperature", type=float, nargs="+", default=[300.0], metavar="K")
    parser.add_argument("--frames", type=int, default=500, help="frames at each temperature")
    parser.add_argument(
        "--test-temperature", type=float, nargs="+", metavar="K", help="default: --temperature"
    )
    parser.add_argument(
        "--test-frames", type=int, default=0, help="test frames at each test temperature"
    )
    parser.add_argument("--trajectories", type=int, default=5, help="independent ones for training")
    parser.add_argument("--test-trajectories", type=int, default=2, help="and for each test set")
    parser.add_argument("--interval", type=float, default=15.0, help="fs between frames")
    parser.add_argument("--equilibration", type=float, default=500.0, help="fs before them")
    parser.add_argument("--charge", type=int, help="total charge; default: the SMILES' or 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def run(args: argparse.Namespace) -> int:
    """Samples the molecule and writes the data set."""
    plan = _plan(args)
    _check_output(args.output, args.overwrite)
    starts = _starts(args, sum(part.count for part in plan))
    charge = args.charge if args.charge is not None else int(starts[0].info.get("charge", 0))
    began = time.process_time()
    frames = isolated_atoms(sorted(set(starts[0].get_chemical_symbols())))
    frames[0].info["provenance"] = _provenance(args, charge)
    seeds = np.random.SeedSequence(args.seed).spawn(len(starts))
    with tqdm(total=sum(part.num_steps for part in plan), unit="step", desc="sampling") as bar:
        trajectory = 0
        for part in plan:
            for share in np.array_split(np.arange(part.frames), part.count):
                start, seed = starts[trajectory], seeds[trajectory]
                dynamics = _dynamics(start, part, len(share), charge, seed, bar)
                for atoms in dynamics:
                    atoms.info.update(trajectory=trajectory)
                    frames.append(atoms)
                trajectory += 1
    write(frames, args.output)
    _summarise(frames, args.output, time.process_time() - began)
    return 0


def isolated_atoms(symbols: Sequence[str]) -> list[Atoms]:
    """Labelled frames with one atom each, in the spin state of the free atom."""
    frames = []
    for symbol in symbols:
        atoms = Atoms(symbol, info={"config_type": "IsolatedAtom", "split": "isolated"})
        multiplicity = int(ground_state_magnetic_moments[atoms.numbers[0]]) + 1
        atoms.calc = _calculator(_LABEL_ACCURACY, charge=0, multiplicity=multiplicity)
        energy = float(atoms.get_potential_energy())
        frames.append(attach_labels(atoms, {"energy": energy, "forces": np.zeros((1, 3))}))
    return frames


def write(frames: Sequence[Atoms], path: Path) -> None:
    """Writes extended XYZ, compressed as the name says, whole or not at all."""
    text = io.StringIO()
    ase.io.write(text, list(frames), format="extxyz")
    content = text.getvalue().encode()
    compress = _COMPRESSORS.get(path.suffix)
    if compress is not None:
        content = compress(content)
    write_atomically(path, content)


def _plan(args: argparse.Namespace) -> list[Trajectories]:
    """The trajectories that the command line asks for."""
    positive = {"--interval": args.interval, "--trajectories": args.trajectories}
    positive["--test-trajectories"] = args.test_trajectories
    positive["--frames"] = args.frames
    for name, value in positive.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if args.equilibration < 0 or args.test_frames < 0:
        raise ValueError(
            "--equilibration and --test-frames must not be negative, "
            f"got {args.equilibration} and {args.test_frames}"
        )
    tests = (args.test_temperature or args.temperature) if args.test_frames else []
    asked = [(t, "train", args.frames, args.trajectories) for t in args.temperature]
    asked += [(t, "test", args.test_frames, args.test_trajectories) for t in tests]
    for temperature, *_ in asked:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"--temperature must be positive (K), got {temperature}")
    return [
        Trajectories(t, frames, split, min(count, frames), args.interval, args.equilibration)
        for t, split, frames, count in asked
    ]


def _check_output(path: Path, overwrite: bool) -> None:
    """Refuses an output that could not be written after minutes of dynamics."""
    name = path.with_suffix("") if path.suffix in _COMPRESSORS else path
    if name.suffix not in (".xyz", ".extxyz"):
        raise ValueError(f"--output must end in .xyz or .xyz with .xz, .gz or .bz2, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of --output must exist, got {path.parent}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it")


def _starts(args: argparse.Namespace, count: int) -> list[Atoms]:
    """One relaxed starting geometry for each trajectory."""
    _calculator(1.0, charge=0)  # a missing tblite is told before rdkit works
    if args.structure is not None:
        molecule = read(args.structure, require=(), index="0")[0]
        return [molecule.copy() for _ in range(count)]
    return _conformers(args.smiles, count, args.seed)


def _conformers(smiles: str, count: int, seed: int) -> list[Atoms]:
    """Conformers of a molecule by distance geometry and the MMFF94 force field of rdkit."""
    try:
        from rdkit import Chem
        from rdkit.Chem.rdDistGeom import EmbedMultipleConfs
        from rdkit.Chem.rdForceFieldHelpers import MMFFOptimizeMoleculeConfs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '--smiles needs rdkit: pip install "eqtp[xtb]", or give a geometry by --structure'
        ) from error
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"--smiles must be a valid SMILES string, got {smiles!r}")
    molecule = Chem.AddHs(molecule)
    ids = EmbedMultipleConfs(molecule, numConfs=count, randomSeed=seed)
    if len(ids) != count:
        raise ValueError(f"rdkit found no geometry for {smiles!r}; give one by --structure")
    MMFFOptimizeMoleculeConfs(molecule)
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    charge = Chem.GetFormalCharge(molecule)
    return [
        Atoms(symbols, molecule.GetConformer(i).GetPositions(), info={"charge": charge})
        for i in ids
    ]


def _dynamics(
    start: Atoms,
    part: Trajectories,
    frames: int,
    charge: int,
    seed: np.random.SeedSequence,
    bar: Any,
) -> Iterator[Atoms]:
    """Relaxes, equilibrates, and yields labelled frames at equal intervals."""
    atoms = Atoms(start.numbers, start.positions, cell=start.cell, pbc=start.pbc)
    atoms.calc = _calculator(1.0, charge)
    BFGS(atoms, logfile=None).run(fmax=0.1, steps=200)
    rng = np.random.default_rng(seed)
    spread = np.sqrt(atoms.get_masses() * ase.units.kB * part.temperature)  # Maxwell-Boltzmann
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * spread[:, None])
    langevin = Langevin(
        atoms,
        _TIME_STEP * ase.units.fs,
        temperature_K=part.temperature,
        friction=_FRICTION / ase.units.fs,
        fixcm=False,
        rng=rng,
    )
    langevin.attach(lambda: bar.update(min(langevin.nsteps, 1)))  # called for the start, too
    langevin.run(part.equilibration_steps)
    labeller = _calculator(_LABEL_ACCURACY, charge)
    for _ in range(frames):
        langevin.run(part.interval_steps)
        yield _labelled(atoms, labeller, part)


def _labelled(atoms: Atoms, calculator: Calculator, part: Trajectories) -> Atoms:
    """A frame as it will stand in the file, with the labels of exactly those positions."""
    info = {"config_type": f"{part.temperature:g}K", "split": part.split}
    origin = 0.0 if atoms.pbc.any() else atoms.get_center_of_mass()
    positions = np.round(atoms.positions - origin, _DECIMALS)
    frame = Atoms(atoms.numbers, positions, cell=atoms.cell, pbc=atoms.pbc, info=info)
    frame.calc = calculator
    labels = {"energy": float(frame.get_potential_energy()), "forces": frame.get_forces()}
    if frame.pbc.all():
        labels["stress"] = frame.get_stress(voigt=False)
    return attach_labels(frame, labels)


def _calculator(accuracy: float, charge: int, multiplicity: int | None = None) -> Calculator:
    """GFN2-xTB as an ASE calculator."""
    try:
        from tblite.ase import TBLite
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('eqtp sample needs tblite: pip install "eqtp[xtb]"') from error
    calculator: Calculator = TBLite(
        method=_METHOD, accuracy=accuracy, charge=charge, multiplicity=multiplicity, verbosity=0
    )
    return calculator


def _provenance(args: argparse.Namespace, charge: int) -> str:
    """How the file was made, kept in its first frame."""
    command = " ".join(["eqtp sample", *sys.argv[2:]]) if len(sys.argv) > 2 else "eqtp sample"
    return (
        f"{_METHOD} by tblite {version('tblite')}, charge {charge}, label accuracy "
        f"{_LABEL_ACCURACY}, electronic temperature 300 K; Langevin dynamics by ASE "
        f"{version('ase')}, {_TIME_STEP} fs steps, friction {_FRICTION}/fs, equilibration "
        f"{args.equilibration:g} fs, a frame every {args.interval:g} fs; seed {args.seed}; "
        f"units eV, Å; {time.strftime('%Y-%m-%d')}; command: {command}"
    )


def _summarise(frames: Sequence[Atoms], path: Path, seconds: float) -> None:
    """Tells what was made."""
    print(f"{path}: {len(frames)} frames, {path.stat().st_size / 1e6:.2f} MB, {seconds:.0f} s CPU")
    for split, kind in dict.fromkeys((f.info["split"], f.info["config_type"]) for f in frames):
        chosen = [f for f in frames if (f.info["split"], f.info["config_type"]) == (split, kind)]
        energies = [f.get_potential_energy() for f in chosen]
        largest = max(float(np.abs(f.get_forces()).max()) for f in chosen)
        print(
            f"  {split} {kind}: {len(chosen)} frames, energy {min(energies):.3f} to "
            f"{max(energies):.3f} eV, largest force component {largest:.2f} eV/Å"
        )
