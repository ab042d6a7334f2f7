"""`eqtp accelerate MODEL`: what would be swapped, whether the numbers agree, and what it gains."""

from __future__ import annotations

import argparse
import pickle
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from eqtp.backend import Backend
from eqtp.models.acceleration import mace
from eqtp.models.acceleration.accelerate import accelerate, restore

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["add_arguments", "run", "water_box"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `eqtp accelerate`."""
    parser.add_argument("model", type=Path, help="a whole mace-torch model, as its training saves")
    parser.add_argument("--check", action="store_true", help="compare the numbers, too")
    parser.add_argument("--benchmark", action="store_true", help="measure the speed-up, too")
    parser.add_argument("--structure", type=Path, help="for the benchmark; any file that ASE reads")
    parser.add_argument("--repetitions", type=int, default=10, help="timed rounds (10)")
    parser.add_argument("--backend", choices=get_args(Backend), default="auto")
    parser.add_argument("--device", default="cpu")


def run(args: argparse.Namespace) -> int:
    """Prints what was swapped, the differences, and times with and without.

    Raises:
        FileNotFoundError: There is no such model or structure.
        ValueError: The file is no whole model, numbers differ, or elements do not fit.
    """
    if args.benchmark and args.repetitions < 1:
        raise ValueError(f"--repetitions must be at least 1, got {args.repetitions}")
    model = load_model(args.model, args.device)
    print(accelerate(model, backend=args.backend, check=args.check))
    if args.benchmark:
        from ase.io import read

        atoms: Any = water_box() if args.structure is None else read(args.structure)
        print(benchmark(model, atoms, args))
    return 0


def load_model(path: Path, device: str) -> Any:
    """A model that was saved whole. Loading it runs code from the file, as PyTorch does.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else, e.g. a state dict, or TorchScript.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}")
    try:
        model = torch.load(path, map_location=device, weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read by torch.load: {error}") from error
    if not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"{path} must hold a whole model (torch.save(model, path)), got {type(model).__name__}"
        )
    return model.eval()


def benchmark(model: Any, atoms: Atoms, args: argparse.Namespace) -> str:
    """Median seconds of energy and forces with the swaps and without, in turn, as text."""
    known = {int(z) for z in getattr(model, "atomic_numbers", ())}
    if not known:
        raise NotImplementedError(
            f"--benchmark needs a model of mace-torch, got {type(model).__name__}; leave it out"
        )
    missing = sorted(set(atoms.numbers.tolist()) - known)
    if missing:
        raise ValueError(
            f"the model must know all elements of the structure, it lacks {missing}; name a "
            "structure with --structure"
        )
    dtype = next(model.parameters()).dtype

    def evaluate() -> None:
        model(mace.batch(model, atoms, dtype))

    times: dict[str, list[float]] = {"original": [], "accelerated": []}
    for repetition in range(-2, args.repetitions):  # two rounds to warm up
        for name, prepare in _CONTESTANTS.items():
            prepare(model, args.backend)
            seconds = _seconds(evaluate, args.device)
            if repetition >= 0:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    threads = torch.get_num_threads()
    return (
        f"energy and forces of {len(atoms)} atoms, {args.device}, {threads} thread(s), "
        f"median of {args.repetitions}:\n"
        f"  original     {median['original'] * 1e3:10.1f} ms\n"
        f"  accelerated  {median['accelerated'] * 1e3:10.1f} ms\n"
        f"  speed-up     {median['original'] / median['accelerated']:10.1f}"
    )


_CONTESTANTS: dict[str, Callable[[Any, Backend], object]] = {
    "original": lambda model, backend: restore(model),
    "accelerated": lambda model, backend: accelerate(model, backend, check=False),
}


def _seconds(call: Callable[[], None], device: str) -> float:
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def water_box(molecules_per_edge: int = 4) -> Atoms:
    """Water at its density: turned molecules on a cubic lattice of 3.1 Å.

    Example:
        >>> len(water_box())
        192
    """
    import numpy as np
    from ase import Atoms
    from ase.build import molecule

    generator = np.random.default_rng(0)
    box, edge = Atoms(), 3.1
    for site in np.ndindex(*(molecules_per_edge,) * 3):
        water = molecule("H2O")
        water.rotate(generator.uniform(0, 360), generator.normal(size=3))
        water.translate(edge * np.array(site))
        box += water
    box.set_cell([molecules_per_edge * edge] * 3)
    box.pbc = True
    return box
