"""A mace-torch model beside the same model after `eqtp.accelerate`, in turns, one process.

Energy and forces, and a training step on them, of five 3BPA frames in a batch and of a box of 64
water molecules; float32, lmax 3, correlation 3, random weights.

    .venv-mace/bin/python -m eqtp.benchmarks.accelerate      # the environment of `make test`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from eqtp.benchmarks.timing import (
    alternate,
    machine,
    relative_error,
    results_folder,
    worker,
    write_json,
)

MODULE = "eqtp.benchmarks.accelerate"
HIDDEN_IRREPS = ("128x0e+128x1o",)
BARS = {"energy and forces": 5.0, "training step": 4.0}  # the original's time over ours, at least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench accelerate`."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", nargs="+", default=list(HIDDEN_IRREPS))
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--output", type=Path, default=results_folder() / "accelerate.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        write_json(args.worker, measure(args.hidden[0], args.threads, args.repetitions))
        return 0
    record: dict[str, Any] = {"machine": machine(), "models": {}}
    for hidden in args.hidden:
        options = ("--hidden", hidden, "--repetitions", args.repetitions)
        record["models"][hidden] = worker(MODULE, args.threads, *options)
        write_json(args.output, record)
    print(table(record))
    print(f"written: {args.output}")
    return 0


def measure(hidden: str, threads: int, repetitions: int) -> dict[str, Any]:
    """Differences and times on both structures."""
    import eqtp

    torch.set_num_threads(threads)
    result: dict[str, Any] = {"threads": threads, "structures": {}}
    for name, make in {"3BPA, batch of 5": _threebpa, "water, 192 atoms": _water}.items():
        original, data = make(hidden)
        models = {"mace-torch": original, "accelerated": deepcopy(original)}
        eqtp.accelerate(models["accelerated"])
        forces = [model(dict(data))["forces"] for model in models.values()]
        tasks = {
            "energy and forces": {key: _evaluation(m, data) for key, m in models.items()},
            "training step": {key: _training_step(m, data) for key, m in models.items()},
        }
        result["structures"][name] = {
            "edges": data["edge_index"].shape[1],
            "difference of forces": relative_error(forces[1], forces[0]),
            "tasks": {
                task: {
                    key: samples.summary()
                    for key, samples in alternate(calls, repetitions=repetitions).items()
                }
                for task, calls in tasks.items()
            },
        }
    return result


def _threebpa(hidden: str) -> tuple[Any, dict[str, torch.Tensor]]:
    from eqtp.benchmarks.mace_torch import MaceTorch
    from eqtp.benchmarks.threebpa import ThreeBPA, collate
    from eqtp.benchmarks.training_step import five_frames

    torch.manual_seed(0)
    frames = ThreeBPA.load()
    wrapper = MaceTorch(**frames.statistics(), hidden_irreps=hidden).float()
    data = collate(five_frames(frames.train), torch.float32)
    return wrapper.mace, wrapper.native_input(data)


def _water(hidden: str) -> tuple[Any, dict[str, torch.Tensor]]:
    from eqtp.benchmarks.mace_torch import MaceTorch
    from eqtp.models.acceleration.command import water_box
    from eqtp.models.acceleration.mace import batch

    torch.manual_seed(0)
    wrapper = MaceTorch(
        atomic_numbers=[1, 8],
        atomic_energies=[-13.6, -2041.8],
        avg_num_neighbors=52.0,
        hidden_irreps=hidden,
    ).float()
    return wrapper.mace, batch(wrapper.mace, water_box(), torch.float32)


def _evaluation(model: Any, data: dict[str, torch.Tensor]) -> Callable[[], object]:
    return lambda: model(dict(data))


def _training_step(model: Any, data: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Forward, forces, backward of an energy and force loss, and Adam."""
    # A rate at which the steps leave the weights, and so the work, as they are.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, amsgrad=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(dict(data), training=True)
        loss = output["interaction_energy"].square().mean() + output["forces"].square().mean()
        torch.autograd.backward(loss, inputs=list(model.parameters()))
        optimizer.step()

    return step


def table(record: dict[str, Any]) -> str:
    """Medians in ms and their ratio, by wall clock and by CPU time."""
    lines = []
    for hidden, result in record["models"].items():
        for name, measured in result["structures"].items():
            lines.append(
                f"\n{name} ({measured['edges']} edges), {hidden}, float32, "
                f"{result['threads']} thread(s); median in ms; forces differ by "
                f"{measured['difference of forces']:.1e}"
            )
            for task, times in measured["tasks"].items():
                cells = []
                for clock in ("wall", "cpu"):
                    theirs, ours = (
                        times[key][clock]["median"] * 1e3 for key in ("mace-torch", "accelerated")
                    )
                    cells.append(f"{clock} {theirs:8.1f} -> {ours:7.1f}  {theirs / ours:5.1f} x")
                lines.append(f"  {task:20}{'   '.join(cells)}   bar: {BARS[task]:g}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `eqtp bench accelerate`."""
    parser = argparse.ArgumentParser(prog="eqtp bench accelerate")
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
