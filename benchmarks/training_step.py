"""A training step and an evaluation of MACE beside mace-torch 0.3.16, error and memory beside time.

One batch of five 3BPA frames, lmax 3, correlation 3, float32, models of three sizes; `eqtp` starts
from mace-torch's weights (`MACE.from_mace`), `eqtp independent` is eqtp's own basis of couplings.
The contestants take turns in one process; each size and number of threads has a process of its own.
Peak memory is what three training steps add to a process, each contestant in its own.

    .venv-mace/bin/python -m eqtp.benchmarks.training_step      # the environment of `make test`
"""

from __future__ import annotations

import argparse
import ctypes
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
HIDDEN_IRREPS = ("32x0e+32x1o", "128x0e+128x1o", "64x0e+64x1o+64x2e")
CONTESTANTS = ("mace-torch", "eqtp", "eqtp independent")
NUM_FRAMES, NUM_EDGES = 5, 2246
FORCES_WEIGHT = 100.0
BARS = {"step": 6.0, "evaluate": 6.0}  # mace-torch's time over eqtp's, at least
MEMORY_BAR = 2.0  # mace-torch's peak over eqtp's, at least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench training_step`."""
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--hidden", nargs="+", default=list(HIDDEN_IRREPS))
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--output", type=Path, default=results_folder() / "training_step.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        hidden, threads = args.hidden[0], args.threads[0]
        answer = (
            {"bytes": peak_memory(hidden, args.memory_of)}
            if args.memory_of
            else measure(hidden, threads, args.repetitions)
        )
        write_json(args.worker, answer)
        return 0
    record: dict[str, Any] = {"machine": machine(), "models": {}}
    for hidden in args.hidden:
        options = ("--hidden", hidden, "--repetitions", args.repetitions)
        record["models"][hidden] = {
            "threads": {t: worker(MODULE, t, *options) for t in args.threads},
            "peak_memory": {
                name: worker(MODULE, 1, *options, "--memory-of", name)["bytes"]
                for name in CONTESTANTS
            },
        }
        write_json(args.output, record)
    print(table(record))
    print(f"written: {args.output}")
    return 0


def contestants(hidden: str) -> tuple[dict[str, nn.Module], Sequence[Any]]:
    """The models, float64, and the frames that they meet."""
    from eqtp.benchmarks.mace_torch import MaceTorch
    from eqtp.benchmarks.threebpa import ThreeBPA
    from eqtp.models import MACE

    torch.manual_seed(0)
    data = ThreeBPA.load()
    hyperparameters: dict[str, Any] = data.statistics() | {"hidden_irreps": hidden}
    opponent = MaceTorch(**hyperparameters)
    models = (opponent, MACE.from_mace(opponent.mace).double(), MACE(**hyperparameters))
    return dict(zip(CONTESTANTS, models, strict=True)), five_frames(data.train)


def measure(hidden: str, threads: int, repetitions: int) -> dict[str, Any]:
    """Errors and times of every contestant in this process."""
    from eqtp.benchmarks.threebpa import collate

    torch.set_num_threads(threads)
    models, frames = contestants(hidden)
    double, single = collate(frames, torch.float64), collate(frames, torch.float32)
    reference = evaluate(models["mace-torch"], double)
    errors = {"float64": _errors(evaluate(models["eqtp"], double), reference)}
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


def peak_memory(hidden: str, contestant: str) -> int:
    """Bytes that three training steps add to this process at their peak."""
    from eqtp.benchmarks.threebpa import collate

    models, frames = contestants(hidden)
    step = training_step(models[contestant].float(), collate(frames, torch.float32))
    ctypes.CDLL(None).malloc_trim(0)  # what making the models left behind does not count
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A memory figure of this process from the kernel (Linux), bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


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
    """The medians with quartiles in ms, and mace-torch's times and memory over the others'."""
    lines = []
    for hidden, result in record["models"].items():
        for threads, measured in result["threads"].items():
            lines.append(
                f"\n3BPA, batch {NUM_FRAMES} ({measured['num_edges']} edges), {hidden}, float32, "
                f"{threads} thread(s); median [quartiles] in ms"
            )
            lines.append(
                f"{'':10}{'':20}{'CPU':>26}{'wall':>26}{'CPU ratio':>11}{'wall ratio':>11}"
            )
            for task, bar in BARS.items():
                lines += _task_rows(task, measured[task])
                lines.append(f"{'':10}bar: at least {bar} times faster")
            for name, error in measured["errors"].items():
                cells = ", ".join(f"{key} {value:.1e}" for key, value in error.items())
                lines.append(f"relative error, {name:20}{cells}")
        peak = result["peak_memory"]
        cells = ", ".join(
            f"{name} {size / 2**20:.0f} MiB ({peak['mace-torch'] / size:.1f})"
            for name, size in peak.items()
        )
        lines.append(f"peak memory of three steps: {cells}; bar: {MEMORY_BAR}")
    return "\n".join(lines)


def _task_rows(task: str, times: dict[str, Any]) -> list[str]:
    base = times["mace-torch"]
    rows = []
    for name, clocks in times.items():
        ratios = [base[c]["median"] / clocks[c]["median"] for c in ("cpu", "wall")]
        cells = "".join(f"{milliseconds(clocks[clock]):>26}" for clock in ("cpu", "wall"))
        rows.append(f"{task:10}{name:20}{cells}{ratios[0]:11.2f}{ratios[1]:11.2f}")
    return rows


def milliseconds(clock: dict[str, Any]) -> str:
    """Median and quartiles of one clock."""
    low, high = clock["quartiles"]
    return f"{1e3 * clock['median']:.1f} [{1e3 * low:.1f}, {1e3 * high:.1f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.training_step`."""
    parser = argparse.ArgumentParser(prog="training_step", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
