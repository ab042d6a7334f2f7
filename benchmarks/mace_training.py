"""The same potential trained for the same CPU time by eqtp and by mace-torch 0.3.16.

3BPA at 300 K, 32x0e+32x1o, lmax 3, correlation 3: the architecture of the preset `3bpa-small`. Both
libraries run through the one loop below, so frames, their order, loss, optimiser, weight decay,
clipping, moving average and learning-rate schedule are the same; each starts from its own
initialisation. The budget is CPU time of a process with one thread, counted only around the
training steps: neither the evaluations nor other load on the machine cost training time. The
learning rate follows the elapsed share of the budget, so that both runs anneal to the end.

    .venv-mace/bin/python -m eqtp.benchmarks.mace_training --hours 1 --output DIR
    .venv-mace/bin/python -m eqtp.benchmarks.mace_training --hours 1 --output DIR --library eqtp
    .venv-mace/bin/python -m eqtp.benchmarks.mace_training --output DIR --report
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eqtp.benchmarks.threebpa import ThreeBPA, collate
from eqtp.benchmarks.timing import machine, results_folder, write_json
from eqtp.models.training.structure import Structure

if TYPE_CHECKING:
    from eqtp.benchmarks.mace_torch import MaceTorch
    from eqtp.models import MACE

MODULE = "eqtp.benchmarks.mace_training"
HIDDEN_IRREPS = "32x0e+32x1o"
LIBRARIES = ("eqtp", "mace")
EVALUATIONS = 20
EVALUATION_FRAMES = 40


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The training recipe, the same for both libraries.

    Attributes:
        batch_size: Frames in a batch.
        lr: Learning rate at the start.
        lr_end: Learning rate at the end, as a share of `lr`; a cosine leads there.
        weight_decay: On the product weights and the interactions' linear maps, as in MACE.
        energy_weight: Weight of the squared energy error per atom.
        forces_weight: Weight of the squared force error.
        ema: Decay of the moving average of the weights, which is what is evaluated.
        clip: Largest norm of the gradient.
        seed: Of the initialisation and of the frames' order.
    """

    batch_size: int = 5
    lr: float = 0.01
    lr_end: float = 0.01
    weight_decay: float = 5e-7
    energy_weight: float = 1.0
    forces_weight: float = 100.0
    ema: float = 0.99
    clip: float = 10.0
    seed: int = 0

    def learning_rate(self, share: float) -> float:
        """The learning rate when `share` of the budget has elapsed."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
        return self.lr * (self.lr_end + (1.0 - self.lr_end) * cosine)


def build(library: str, hyperparameters: dict[str, Any]) -> MACE | MaceTorch:
    """The float32 model of one library."""
    if library == "mace":
        from eqtp.benchmarks.mace_torch import MaceTorch

        return MaceTorch(**hyperparameters).float()
    from eqtp.models import MACE

    return MACE(**hyperparameters).float()


class Run:
    """One training run: `step` until the CPU time is spent.

    Args:
        model: With eqtp's model interface.
        frames: Training frames, as graphs.
        recipe: The recipe.
        budget: CPU time in seconds.
    """

    def __init__(
        self,
        model: MACE | MaceTorch,
        frames: Sequence[Structure],
        recipe: Recipe,
        budget: float,
    ) -> None:
        self.model, self.frames, self.recipe, self.budget = model, frames, recipe, budget
        self.parameters = list(model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        decayed = model.weight_decay_parameters()
        others = set(self.parameters) - set(decayed)
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": [p for p in self.parameters if p in others], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=recipe.lr, amsgrad=True)
        self.steps = 0
        self.cpu = 0.0
        self.loss = float("nan")
        self._order = self._shuffled()

    @property
    def epochs(self) -> float:
        """How often each frame has been seen."""
        return self.steps * self.recipe.batch_size / len(self.frames)

    def step(self) -> None:
        """One step of training, on the clock."""
        start = time.process_time()
        data = collate([self.frames[i] for i in next(self._order)], torch.float32)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.cpu / self.budget)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self.model(data), data)
        torch.autograd.backward(loss, inputs=self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        self.loss = loss.item()
        self.steps += 1
        self._update_average()
        self.cpu += time.process_time() - start

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model in evaluation mode, with the averaged weights."""
        weights = [parameter.detach().clone() for parameter in self.parameters]
        self._set(self.average)
        self.model.eval()
        yield self.model
        self.model.train()
        self._set(weights)

    @torch.no_grad()
    def _update_average(self) -> None:
        """As in torch-ema, which mace-torch uses: the random start is forgotten quickly."""
        decay = min(self.recipe.ema, (1 + self.steps) / (10 + self.steps))
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.lerp_(parameter, 1 - decay)

    def _set(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def _loss(self, output: dict[str, Tensor], data: Structure) -> Tensor:
        num_atoms = torch.bincount(data["batch"])
        energy = ((output["energy"] - data.energy.double()) / num_atoms).square().mean()
        forces = (output["forces"] - data.forces).square().mean()
        loss: Tensor = self.recipe.energy_weight * energy + self.recipe.forces_weight * forces
        return loss

    def _shuffled(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.recipe.seed)
        size = self.recipe.batch_size
        while True:
            order = torch.randperm(len(self.frames), generator=generator).tolist()
            yield from (order[i : i + size] for i in range(0, len(order) - size + 1, size))


def errors(model: nn.Module, frames: Sequence[Structure]) -> dict[str, float]:
    """RMSE of the total energy in meV and of the force components in meV/Å."""
    energy, forces = [], []
    for start in range(0, len(frames), 10):
        data = collate(frames[start : start + 10], torch.float32)
        output = model(data)
        energy.append(output["energy"].detach() - data.energy.double())
        forces.append((output["forces"].detach() - data.forces).double().flatten())
    rmse = [float(torch.cat(parts).square().mean().sqrt()) for parts in (energy, forces)]
    return {"energy_meV": 1e3 * rmse[0], "forces_meV_per_A": 1e3 * rmse[1]}


def train(library: str, seconds: float, recipe: Recipe, output: Path) -> None:
    """Trains one library and writes its record after every evaluation, its weights at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    data = ThreeBPA.load()
    hyperparameters = data.hyperparameters(HIDDEN_IRREPS)
    run = Run(build(library, hyperparameters), data.train, recipe, seconds)
    subsets = {name: _spread(frames) for name, frames in data.tests.items()}
    record: dict[str, Any] = {
        "library": library,
        "machine": machine(),
        "recipe": dataclasses.asdict(recipe),
        "hyperparameters": hyperparameters,
        "parameters": sum(parameter.numel() for parameter in run.parameters),
        "budget_cpu_s": seconds,
        "subset_frames": EVALUATION_FRAMES,
        "notes": data.notes,
        "curve": [],
    }
    path = output / f"{library}.json"
    start = time.perf_counter()
    for share in torch.linspace(0, 1, EVALUATIONS + 1)[1:].tolist():
        while run.cpu < share * seconds:
            run.step()
        with run.averaged() as model:
            point = {name: errors(model, frames) for name, frames in subsets.items()}
        progress = {"cpu_s": run.cpu, "wall_s": time.perf_counter() - start, "steps": run.steps}
        progress |= {"epochs": run.epochs, "loss": run.loss}
        record["curve"].append(progress | {"errors": point})
        write_json(path, record)
        rmse = ", ".join(f"{k} {v['forces_meV_per_A']:.1f}" for k, v in point.items())
        print(f"{library} {run.cpu:6.0f} s {run.steps:6} steps, force RMSE: {rmse}", flush=True)
    with run.averaged() as model:
        record["final"] = {name: errors(model, frames) for name, frames in data.tests.items()}
        torch.save(model.state_dict(), output / f"{library}.pt")
    write_json(path, record)


def _spread(frames: Sequence[Structure]) -> list[Structure]:
    """Evenly spread frames of a set."""
    places = torch.linspace(0, len(frames) - 1, min(EVALUATION_FRAMES, len(frames)))
    return [frames[int(place)] for place in places]


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
    _plot(records, results_folder() / "mace_duel.png")
    sets = list(records["eqtp"]["final"])
    lines = [
        "RMSE of the averaged weights; total energy in meV, forces in meV/Å",
        f"{'':8}{'steps':>8}{'epochs':>8}  " + "".join(f"{name:>24}" for name in sets),
        f"{'':8}{'':8}{'':8}  " + f"{'energy':>14}{'forces':>10}" * len(sets),
    ]
    for library, record in records.items():
        last = record["curve"][-1]
        cells = "".join(
            f"{error['energy_meV']:14.1f}{error['forces_meV_per_A']:10.1f}"
            for error in record["final"].values()
        )
        lines.append(f"{library:8}{last['steps']:8}{last['epochs']:8.1f}  {cells}")
    lines += records["eqtp"]["notes"]
    return "\n".join(lines)


def _plot(records: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sets = list(records["eqtp"]["final"])
    figure, axes = plt.subplots(1, len(sets), figsize=(4 * len(sets), 3.5), constrained_layout=True)
    for axis, name in zip(axes, sets, strict=True):
        for library, record in records.items():
            curve = record["curve"]
            minutes = [point["cpu_s"] / 60 for point in curve]
            rmse = [point["errors"][name]["forces_meV_per_A"] for point in curve]
            axis.semilogy(minutes, rmse, ".-", label=library)
        axis.set(title=f"3BPA, {name}", xlabel="CPU time [min]")
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].set_ylabel("force RMSE [meV/Å]")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part.png")
    figure.savefig(temporary, dpi=150)
    plt.close(figure)
    os.replace(temporary, path)


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
        train(args.library, 3600 * args.hours, Recipe(**values), args.output)
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
