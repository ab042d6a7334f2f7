"""A mace-torch model beside the same model after `eqtp.accelerate`, in turns, one process.

Energy and forces, and a training step on them, of five 3BPA frames in a batch and of a box of 64
water molecules; float32, lmax 3, correlation 3, random weights.

    .venv-mace/bin/python -m eqtp.benchmarks.accelerate      # the environment of `make test`

With `--converted` the model that mace-torch's own `convert_e3nn_cueq` makes takes part, on 3BPA; it
needs `pip install cuequivariance cuequivariance-torch` beside mace-torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
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
    parser.add_argument(
        "--converted", action="store_true", help="mace-torch's conversion to cuequivariance, too"
    )
    parser.add_argument("--output", type=Path, default=results_folder() / "accelerate.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.converted and importlib.util.find_spec("cuequivariance_torch") is None:
        raise ValueError(
            "--converted needs cuequivariance: pip install cuequivariance cuequivariance-torch"
        )
    if args.worker:
        measured = measure(args.hidden[0], args.threads, args.repetitions, args.converted)
        write_json(args.worker, measured)
        return 0
    record: dict[str, Any] = {"machine": machine(), "models": {}}
    for hidden in args.hidden:
        options: tuple[object, ...] = ("--hidden", hidden, "--repetitions", args.repetitions)
        options += ("--converted",) if args.converted else ()
        record["models"][hidden] = worker(MODULE, args.threads, *options)
        write_json(args.output, record)
    print(table(record))
    print(f"written: {args.output}")
    return 0


def measure(hidden: str, threads: int, repetitions: int, converted: bool = False) -> dict[str, Any]:
    """Differences and times on both structures, or with the conversion on the smaller one."""
    import eqtp

    torch.set_num_threads(threads)
    result: dict[str, Any] = {"threads": threads, "structures": {}}
    structures = {"3BPA, batch of 5": _threebpa}
    if not converted:
        structures["water, 192 atoms"] = _water
    for name, make in structures.items():
        original, data = make(hidden)
        models = {"mace-torch": original, "accelerated": deepcopy(original)}
        preparation = {"accelerated": _seconds(partial(eqtp.accelerate, models["accelerated"]))}
        if converted:
            preparation["cuequivariance"] = _seconds(partial(_convert, models))
        forces = {key: model(dict(data))["forces"] for key, model in models.items()}
        tasks = {
            "energy and forces": {key: _evaluation(m, data) for key, m in models.items()},
            "training step": {key: _training_step(m, data) for key, m in models.items()},
        }
        result["structures"][name] = {
            "edges": data["edge_index"].shape[1],
            "preparation, seconds of CPU time": preparation,
            "differences of forces": {
                key: relative_error(forces[key], forces["mace-torch"]) for key in preparation
            },
            "tasks": {
                task: {
                    key: samples.summary()
                    for key, samples in alternate(
                        calls, repetitions=repetitions, warmup=min(3, repetitions)
                    ).items()
                }
                for task, calls in tasks.items()
            },
        }
    return result


def _seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _convert(models: dict[str, Any]) -> None:
    """Adds what `mace_convert_e3nn_cueq` makes of the original on a CPU."""
    from mace.cli.convert_e3nn_cueq import run as convert

    default = torch.get_default_dtype()
    try:
        models["cuequivariance"] = convert(deepcopy(models["mace-torch"]), device="cpu")
    finally:
        torch.set_default_dtype(default)


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
            differences = ", ".join(
                f"{key} {value:.1e}" for key, value in measured["differences of forces"].items()
            )
            lines.append(
                f"\n{name} ({measured['edges']} edges), {hidden}, float32, "
                f"{result['threads']} thread(s); median in ms; differences of forces: {differences}"
            )
            for task, times in measured["tasks"].items():
                for key in measured["differences of forces"]:
                    bar = f"   bar: {BARS[task]:g}" if key == "accelerated" else ""
                    lines.append(f"  {task:20}{key:16}{_cells(times, key)}{bar}")
    return "\n".join(lines)


def _cells(times: dict[str, Any], key: str) -> str:
    """The original's time, this one's, and their ratio, by both clocks."""
    cells = []
    for clock in ("wall", "cpu"):
        theirs, ours = (times[name][clock]["median"] * 1e3 for name in ("mace-torch", key))
        cells.append(f"{clock} {theirs:8.1f} -> {ours:8.1f}  {theirs / ours:5.2f} x")
    return "   ".join(cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `eqtp bench accelerate`."""
    parser = argparse.ArgumentParser(prog="eqtp bench accelerate")
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
