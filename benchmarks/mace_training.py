"""The same potential trained for the same CPU time by eqtp and by mace-torch 0.3.16.

3BPA at 300 K, 32x0e+32x1o, lmax 3, correlation 3: the architecture of the preset `3bpa-small`. Both
libraries run through the loop of `training_run` with one recipe; each starts from its own
initialisation.

    .venv-mace/bin/python -m eqtp.benchmarks.mace_training --hours 1 --output DIR
    .venv-mace/bin/python -m eqtp.benchmarks.mace_training --hours 1 --output DIR --library eqtp
    .venv-mace/bin/python -m eqtp.benchmarks.mace_training --output DIR --report
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eqtp.benchmarks.threebpa import ThreeBPA
from eqtp.benchmarks.timing import results_folder, write_json
from eqtp.benchmarks.training_run import Budget, Recipe, plot, table, train

if TYPE_CHECKING:
    from eqtp.benchmarks.mace_torch import MaceTorch
    from eqtp.models import MACE

MODULE = "eqtp.benchmarks.mace_training"
HIDDEN_IRREPS = "32x0e+32x1o"
LIBRARIES = ("eqtp", "mace")


def build(library: str, hyperparameters: dict[str, Any]) -> MACE | MaceTorch:
    """The float32 model of one library."""
    if library == "mace":
        from eqtp.benchmarks.mace_torch import MaceTorch

        return MaceTorch(**hyperparameters).float()
    from eqtp.models import MACE

    return MACE(**hyperparameters).float()


def train_one(library: str, seconds: float, recipe: Recipe, output: Path) -> None:
    """Trains one library in this process."""
    torch.manual_seed(recipe.seed)
    data = ThreeBPA.load()
    hyperparameters = data.statistics() | {"hidden_irreps": HIDDEN_IRREPS}
    model = build(library, hyperparameters)
    about = {"hyperparameters": hyperparameters}
    train(library, model, data, recipe, Budget(seconds), output, about)


def train_both(args: argparse.Namespace) -> None:
    """Trains both at the same time, each with one thread on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < len(LIBRARIES):
        raise ValueError(f"the duel needs {len(LIBRARIES)} cores, got {len(cores)}")
    runs = []
    for library, core in zip(LIBRARIES, cores, strict=False):
        command = [sys.executable, "-m", MODULE, *_options(args), "--library", library]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment)
        os.sched_setaffinity(process.pid, {core})
        runs.append(process)
    if any([process.wait() for process in runs]):
        raise RuntimeError("a training run failed; its own message is above")


def _options(args: argparse.Namespace) -> list[str]:
    """The command line that gives the same arguments again."""
    options = ["--hours", str(args.hours), "--output", str(args.output)]
    for field in dataclasses.fields(Recipe):
        options += [f"--{field.name.replace('_', '-')}", str(getattr(args, field.name))]
    return options


def report(output: Path) -> str:
    """Joins the records into results/<machine>/mace_duel.json and .png; returns the table."""
    records = {
        library: json.loads((output / f"{library}.json").read_text()) for library in LIBRARIES
    }
    write_json(results_folder() / "mace_duel.json", records)
    plot(records, results_folder() / "mace_duel.png")
    return table(records)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench mace_training`."""
    parser.add_argument("--hours", type=float, default=1.0, help="CPU hours of training")
    parser.add_argument("--output", type=Path, required=True, help="folder of the records")
    parser.add_argument("--library", choices=LIBRARIES, help="only this one, in this process")
    parser.add_argument("--report", action="store_true", help="only the table and the plot")
    for field in dataclasses.fields(Recipe):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=type(field.default), default=field.default)


def run(args: argparse.Namespace) -> int:
    """Trains one library or both, then prints the table."""
    args.output.mkdir(parents=True, exist_ok=True)
    if args.library:
        values = {field.name: getattr(args, field.name) for field in dataclasses.fields(Recipe)}
        train_one(args.library, 3600 * args.hours, Recipe(**values), args.output)
        return 0
    if not args.report:
        train_both(args)
    print(report(args.output))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.mace_training`."""
    parser = argparse.ArgumentParser(prog="mace_training", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
