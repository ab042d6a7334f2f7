"""A training step and an evaluation of MACE beside mace-torch 0.3.16, error beside time.

One batch of five 3BPA frames, 32x0e+32x1o, lmax 3, correlation 3, float32; `eqtp` starts from
mace-torch's weights (`MACE.from_mace`), `eqtp independent` is eqtp's own basis of 13 and 16 paths.
The contestants take turns in one process; each number of threads has a process of its own.

    .venv-mace/bin/python -m eqtp.benchmarks.training_step      # the environment of `make test`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.benchmarks.timing import (
    alternate,
    machine,
    relative_error,
    results_folder,
    worker,
    write_json,
)
from eqtp.models.training.structure import Structure

MODULE = "eqtp.benchmarks.training_step"
HIDDEN_IRREPS = "32x0e+32x1o"
NUM_FRAMES, NUM_EDGES = 5, 2246
FORCES_WEIGHT = 100.0
BARS = {"step": 3.0, "evaluate": 2.5}  # mace-torch's CPU time over eqtp's, at least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench training_step`."""
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--output", type=Path, default=results_folder() / "training_step.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        write_json(args.worker, measure(args.threads[0], args.repetitions))
        return 0
    record: dict[str, Any] = {"machine": machine(), "threads": {}}
    for threads in args.threads:
        record["threads"][threads] = worker(MODULE, threads, args.repetitions)
    write_json(args.output, record)
    print(table(record))
    print(f"written: {args.output}")
    return 0


def measure(threads: int, repetitions: int) -> dict[str, Any]:
    """Errors and times of every contestant in this process."""
    from eqtp.benchmarks.mace_torch import MaceTorch
    from eqtp.benchmarks.threebpa import ThreeBPA, collate
    from eqtp.models import MACE

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = ThreeBPA.load()
    frames = five_frames(data.train)
    hyperparameters = data.hyperparameters(HIDDEN_IRREPS)
    opponent = MaceTorch(**hyperparameters)
    models: dict[str, nn.Module] = {
        "mace-torch": opponent,
        "eqtp": MACE.from_mace(opponent.mace),
        "eqtp independent": MACE(**hyperparameters),
    }
    double, single = collate(frames, torch.float64), collate(frames, torch.float32)
    reference = evaluate(opponent, double)
    errors = {"float64": _errors(evaluate(models["eqtp"].double(), double), reference)}
    models = {name: model.float() for name, model in models.items()}
    for name in ("mace-torch", "eqtp"):
        errors[f"float32 {name}"] = _errors(evaluate(models[name], single), reference)
    steps = {name: training_step(model, single) for name, model in models.items()}
    step_times = alternate(steps, repetitions=repetitions)
    evaluations = {name: _evaluation(model, single) for name, model in models.items()}
    evaluate_times = alternate(evaluations, repetitions=repetitions)
    return {
        "threads": threads,
        "num_atoms": len(single.positions),
        "num_edges": len(single.edge_src),
        "parameters": {name: sum(map(Tensor.numel, m.parameters())) for name, m in models.items()},
        "errors": errors,
        "step": {name: samples.summary() for name, samples in step_times.items()},
        "evaluate": {name: samples.summary() for name, samples in evaluate_times.items()},
    }


def five_frames(frames: Sequence[Structure]) -> Sequence[Structure]:
    """The first five frames in a row with the number of edges of the published measurements."""
    batches = (frames[i : i + NUM_FRAMES] for i in range(len(frames)))
    return next(b for b in batches if sum(len(f.edge_src) for f in b) == NUM_EDGES)


def training_step(model: nn.Module, data: Structure) -> Callable[[], None]:
    """Forward, forces, backward of an energy and force loss, clipping, and Adam."""
    model.train()
    parameters = list(model.parameters())
    # A rate at which 20 steps leave the weights, and so the work, as they are.
    optimizer = torch.optim.Adam(parameters, lr=1e-6, amsgrad=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(data)
        energy_loss = torch.nn.functional.mse_loss(output["energy"], data.energy.double())
        force_loss = torch.nn.functional.mse_loss(output["forces"], data.forces)
        torch.autograd.backward(energy_loss + FORCES_WEIGHT * force_loss, inputs=parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()

    return step


def evaluate(model: nn.Module, data: Structure) -> dict[str, Tensor]:
    """Energies and forces, without a graph for gradients with respect to the weights."""
    model.eval()
    return {name: value.detach() for name, value in model(data).items()}


def _evaluation(model: nn.Module, data: Structure) -> Callable[[], object]:
    return lambda: evaluate(model, data)


def _errors(output: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    return {key: relative_error(output[key], reference[key]) for key in ("energy", "forces")}


def table(record: dict[str, Any]) -> str:
    """The medians with quartiles in ms, and mace-torch's CPU time over each contestant's."""
    lines = []
    for threads, result in record["threads"].items():
        lines.append(
            f"\n3BPA, batch {NUM_FRAMES} ({result['num_edges']} edges), {HIDDEN_IRREPS}, float32, "
            f"{threads} thread(s); median [quartiles] in ms"
        )
        lines.append(f"{'':10}{'':20}{'CPU':>26}{'wall':>26}{'CPU ratio':>11}{'wall ratio':>11}")
        for task, bar in BARS.items():
            base = result[task]["mace-torch"]
            for name, times in result[task].items():
                ratios = [base[c]["median"] / times[c]["median"] for c in ("cpu", "wall")]
                cells = "".join(f"{_milliseconds(times[clock]):>26}" for clock in ("cpu", "wall"))
                lines.append(f"{task:10}{name:20}{cells}{ratios[0]:11.2f}{ratios[1]:11.2f}")
            lines.append(f"{'':10}bar: at least {bar} times faster")
        for name, error in result["errors"].items():
            cells = ", ".join(f"{key} {value:.1e}" for key, value in error.items())
            lines.append(f"relative error, {name:20}{cells}")
    return "\n".join(lines)


def _milliseconds(clock: dict[str, Any]) -> str:
    low, high = clock["quartiles"]
    return f"{1e3 * clock['median']:.1f} [{1e3 * low:.1f}, {1e3 * high:.1f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.training_step`."""
    parser = argparse.ArgumentParser(prog="training_step", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
