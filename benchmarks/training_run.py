"""Training on 3BPA against a clock: one loop for every model of every library.

Frames, their order, loss, optimiser, weight decay, clipping, moving average and learning-rate
schedule are the same for all; a recipe says what a model wants differently. The clock is CPU time
of a process with one thread, counted only around the training steps: neither the evaluations nor
other load on the machine cost training time. The learning rate follows the elapsed share of the
budget, so that every run anneals to the end.
"""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eqtp.benchmarks.threebpa import ThreeBPA, collate
from eqtp.benchmarks.timing import machine, write_json
from eqtp.files import write_atomically
from eqtp.models.training.structure import Structure

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


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a run trains: CPU seconds of its steps, or a number of steps.

    Attributes:
        amount: How many.
        unit: Of what.
    """

    amount: float
    unit: Literal["seconds", "steps"] = "seconds"


class Run:
    """One training run: `step` until `share` is 1.

    Args:
        model: With eqtp's model interface.
        frames: Training frames, as graphs.
        recipe: The recipe.
        budget: How long.
    """

    def __init__(
        self, model: Any, frames: Sequence[Structure], recipe: Recipe, budget: Budget
    ) -> None:
        self.model: nn.Module = model
        self.frames, self.recipe, self.budget = frames, recipe, budget
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
    def share(self) -> float:
        """The elapsed share of the budget."""
        elapsed = self.cpu if self.budget.unit == "seconds" else self.steps
        return elapsed / self.budget.amount

    @property
    def epochs(self) -> float:
        """How often each frame has been seen."""
        return self.steps * self.recipe.batch_size / len(self.frames)

    def step(self) -> None:
        """One step of training, on the clock."""
        start = time.process_time()
        data = collate([self.frames[i] for i in next(self._order)], torch.float32)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.share)
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


def train(
    name: str,
    model: Any,
    data: ThreeBPA,
    recipe: Recipe,
    budget: Budget,
    output: Path,
    about: Mapping[str, Any],
) -> Run:
    """Trains a model; writes `name`.json after every evaluation. Returns the run at its end.

    Args:
        name: Name of the run.
        model: The model, initialised, in float32.
        data: The frames.
        recipe: The recipe.
        budget: How long.
        output: Folder of the record.
        about: What else the record says of the model.
    """
    torch.set_num_threads(1)
    run = Run(model, data.train, recipe, budget)
    subsets = {test: _spread(frames) for test, frames in data.tests.items()}
    record: dict[str, Any] = {
        "library": name,
        "machine": machine(),
        "recipe": dataclasses.asdict(recipe),
        **about,
        "parameters": sum(parameter.numel() for parameter in run.parameters),
        "budget": dataclasses.asdict(budget),
        "subset_frames": EVALUATION_FRAMES,
        "notes": data.notes,
        "curve": [],
    }
    path = output / f"{name}.json"
    start = time.perf_counter()
    for share in torch.linspace(0, 1, EVALUATIONS + 1)[1:].tolist():
        while run.share < share:
            run.step()
        with run.averaged() as averaged:
            point = {test: errors(averaged, frames) for test, frames in subsets.items()}
            valid = errors(averaged, data.valid)
        progress = {"cpu_s": run.cpu, "wall_s": time.perf_counter() - start, "steps": run.steps}
        progress |= {"epochs": run.epochs, "loss": run.loss}
        record["curve"].append(progress | {"validation": valid, "errors": point})
        write_json(path, record)
        shown = {"validation": valid} | point
        rmse = ", ".join(f"{k} {v['forces_meV_per_A']:.1f}" for k, v in shown.items())
        print(f"{name} {run.cpu:6.0f} s {run.steps:6} steps, force RMSE: {rmse}", flush=True)
    with run.averaged() as averaged:
        record["final"] = {test: errors(averaged, frames) for test, frames in data.tests.items()}
    write_json(path, record)
    return run


def _spread(frames: Sequence[Structure]) -> list[Structure]:
    """Evenly spread frames of a set."""
    places = torch.linspace(0, len(frames) - 1, min(EVALUATION_FRAMES, len(frames)))
    return [frames[int(place)] for place in places]


def table(records: Mapping[str, dict[str, Any]]) -> str:
    """The final errors of several runs."""
    first = next(iter(records.values()))
    sets = list(first["final"])
    width = max(8, *(len(name) + 2 for name in records))
    lines = [
        "RMSE of the averaged weights; total energy in meV, forces in meV/Å",
        f"{'':{width}}{'steps':>8}{'epochs':>8}{'CPU min':>8}  "
        + "".join(f"{name:>24}" for name in sets),
        f"{'':{width}}{'':24}  " + f"{'energy':>14}{'forces':>10}" * len(sets),
    ]
    for name, record in records.items():
        last = record["curve"][-1]
        cells = "".join(
            f"{error['energy_meV']:14.1f}{error['forces_meV_per_A']:10.1f}"
            for error in record["final"].values()
        )
        minutes = last["cpu_s"] / 60
        lines.append(f"{name:{width}}{last['steps']:8}{last['epochs']:8.1f}{minutes:8.1f}  {cells}")
    return "\n".join([*lines, *first["notes"]])


def plot(records: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Draws the force errors over the CPU time, one panel per test set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    sets = list(next(iter(records.values()))["final"])
    figure, axes = plt.subplots(1, len(sets), figsize=(4 * len(sets), 3.5), constrained_layout=True)
    for axis, name in zip(axes, sets, strict=True):
        for library, record in records.items():
            curve = record["curve"]
            minutes = [point["cpu_s"] / 60 for point in curve]
            rmse = [point["errors"][name]["forces_meV_per_A"] for point in curve]
            axis.semilogy(minutes, rmse, ".-", label=library)
        axis.set(title=f"3BPA, {name}", xlabel="CPU time [min]")
        axis.grid(visible=True, which="both", alpha=0.3)
        for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            ticks(ScalarFormatter())
    axes[0].set_ylabel("force RMSE [meV/Å]")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    plt.close(figure)
    write_atomically(path, image.getvalue())
