"""eqtp's models trained on 3BPA for the same CPU time, or for the same number of steps.

Every model runs through the loop of `training_run`, each with the learning rate that suits it.
MACE's is the published one; the others' have the smallest force error of the validation frames,
in meV/Å, after 0.04 hours of their own:

    lr            0.02    0.01   0.005   0.0025
    ESCN          75.0    82.0   109.2    151.1
    TensorNet             38.7    28.9     33.4

    python -m eqtp.benchmarks.model_training escn --hours 0.04 --lr 0.005 --output DIR
    python -m eqtp.benchmarks.model_training mace escn tensornet --hours 1 --output DIR
    python -m eqtp.benchmarks.model_training mace mace-gaunt --steps 5000 --seeds 0 1 --output DIR
    python -m eqtp.benchmarks.model_training mace escn --output DIR --report NAME
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eqtp.benchmarks.threebpa import ThreeBPA
from eqtp.benchmarks.timing import results_folder, write_json
from eqtp.benchmarks.training_run import Budget, Recipe, plot, table, train
from eqtp.models import save
from eqtp.models.registry import model_class


@dataclass(frozen=True)
class Contestant:
    """A model and what it wants differently from the others.

    Attributes:
        model: Name of the class in `eqtp.models`.
        hyperparameters: Its keywords, the statistics of the data apart.
        recipe: Its recipe.
    """

    model: str
    hyperparameters: dict[str, Any]
    recipe: Recipe = field(default_factory=Recipe)


_MACE = {"hidden_irreps": "32x0e+32x1o"}
CONTESTANTS = {
    "mace": Contestant("MACE", _MACE),
    "escn": Contestant("ESCN", {"channels": 64, "hidden_channels": 32}, Recipe(lr=0.02)),
    "mace-gaunt": Contestant("MACE", _MACE | {"product": "gaunt"}),
    "mace-gaunt-iterated": Contestant("MACE", _MACE | {"product": "gaunt_iterated"}),
    "tensornet": Contestant(
        "TensorNet", {"channels": 64, "num_layers": 2}, Recipe(lr=0.005, weight_decay=0.0)
    ),
}


def train_one(
    name: str, budget: Budget, output: Path, lr: float | None = None, seed: int = 0
) -> None:
    """Trains one contestant in this process and saves it.

    Args:
        name: Which.
        budget: How long.
        output: Folder of the record and of the model with averaged weights, both under `run_name`.
        lr: Learning rate instead of its own.
        seed: Of the initial weights and of the order of the frames.
    """
    contestant = CONTESTANTS[name]
    recipe = dataclasses.replace(contestant.recipe, lr=lr or contestant.recipe.lr, seed=seed)
    kind = model_class(contestant.model)
    torch.manual_seed(recipe.seed)
    data = ThreeBPA.load()
    known = inspect.signature(kind).parameters  # not every model counts neighbours
    statistics = {key: value for key, value in data.statistics().items() if key in known}
    hyperparameters = statistics | contestant.hyperparameters
    model = kind(**hyperparameters).float()
    about = {"model": contestant.model, "hyperparameters": hyperparameters}
    run = train(run_name(name, seed), model, data, recipe, budget, output, about)
    with run.averaged() as averaged:
        save(averaged, output / f"{run_name(name, seed)}.safetensors")


def run_name(name: str, seed: int) -> str:
    """Name of a run: of the contestant, and of the seed if it is not the first."""
    return name if seed == 0 else f"{name}-seed{seed}"


def report(names: Sequence[str], output: Path, result: str) -> str:
    """Joins the records into results/<machine>/RESULT.json and .png; returns the table."""
    records = {name: json.loads((output / f"{name}.json").read_text()) for name in names}
    write_json(results_folder() / f"{result}.json", records)
    plot(records, results_folder() / f"{result}.png")
    return table(records)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench model_training`."""
    parser.add_argument("models", nargs="+", choices=CONTESTANTS, help="trained one after another")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--hours", type=float, default=1.0, help="CPU hours of each model")
    budget.add_argument("--steps", type=int, help="steps of each model, instead of a time")
    parser.add_argument("--lr", type=float, help="another learning rate, to choose one by")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each")
    parser.add_argument("--output", type=Path, required=True, help="folder of the records")
    parser.add_argument("--report", metavar="NAME", help="only join the records under this name")


def run(args: argparse.Namespace) -> int:
    """Trains the models, or joins their records."""
    runs = [(name, seed) for seed in args.seeds for name in args.models]
    if args.report:
        names = [run_name(name, seed) for name, seed in runs]
        print(report(names, args.output, args.report))
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    budget = Budget(args.steps, "steps") if args.steps else Budget(3600 * args.hours)
    for name, seed in runs:
        train_one(name, budget, args.output, args.lr, seed)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.model_training`."""
    parser = argparse.ArgumentParser(
        prog="model_training", description=str(__doc__).splitlines()[0]
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
