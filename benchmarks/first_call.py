"""What the first call of a product costs: compiling its kernels, or taking them from the cache.

The convolution of a large MACE (128 channels, 17 paths), stored weights and `radial=`, float32:
forward, the gradient in the edges' harmonics, the gradients of its square, as training on forces
takes them. A call's cost is the first call of a process less the second, on a graph so small that
the second takes milliseconds. Bars: 3 s for a kernel on an empty cache (the last step needs two of
`radial=`), 50 ms for the whole first call of a second process.

    .venv/bin/python -m eqtp.benchmarks.first_call
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import eqtp
from eqtp.benchmarks.timing import machine, results_folder, worker, write_json
from eqtp.kernels.codegen.compiler import cache_folder, why_unavailable

MODULE = "eqtp.benchmarks.first_call"
CHANNELS, HIDDEN, NODES, EDGES = 128, 64, 16, 64
WAYS = ("stored", "radial")
STEPS = ("forward", "gradient", "double backward")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench first_call`."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3, help="processes of each kind")
    parser.add_argument("--output", type=Path, default=results_folder() / "first_call.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        write_json(args.worker, measure(args.way))
        return 0
    record: dict[str, Any] = {"machine": machine(), "threads": args.threads}
    for way in WAYS:
        record[way] = {"empty cache": [], "second process": []}
        for _ in range(args.repetitions):
            with tempfile.TemporaryDirectory() as folder:
                for processes in record[way].values():
                    environment = {"XDG_CACHE_HOME": folder}
                    options = ("--way", way)
                    processes.append(
                        worker(MODULE, args.threads, *options, environment=environment)
                    )
    write_json(args.output, record)
    print(f"{'median of seconds':24}" + "".join(f"{step:>18}" for step in STEPS))
    for way in WAYS:
        for cache, processes in record[way].items():
            print(f"{way}, {cache:16}" + "".join(_cell(processes, step) for step in STEPS))
    return 0


def _cell(processes: list[dict[str, Any]], step: str) -> str:
    seconds = statistics.median(one["seconds"][step] for one in processes)
    return f"{seconds:10.3f} ({processes[0]['compiled'][step]} new)"


def measure(way: str) -> dict[str, dict[str, float]]:
    """What each step costs at first in this process, in seconds, and the kernels it compiled."""
    why_unavailable()  # compiles a probe that belongs to no product
    torch.manual_seed(0)
    irreps = "+".join(f"{CHANNELS}x{l}{'eo'[l % 2]}" for l in range(4))
    in1 = "+".join(irreps.split("+")[:3])
    tp = eqtp.ChannelwiseTensorProduct(in1, "0e+1o+2e+3o", irreps, layout="ir_mul")
    src, dst = torch.randint(NODES, (2, EDGES))
    graph = eqtp.Graph(src, dst, NODES)
    x1 = torch.randn(NODES, tp.irreps_in1.dim, requires_grad=True)
    x2 = torch.randn(EDGES, tp.irreps_in2.dim, requires_grad=True)
    hidden = torch.randn(EDGES, HIDDEN, requires_grad=True)
    matrix = torch.randn(HIDDEN, tp.weight_numel, requires_grad=True)
    weight = (hidden @ matrix).detach().requires_grad_()

    def steps() -> Iterator[None]:
        if way == "radial":
            out = tp(x1, x2, radial=(hidden, matrix), graph=graph)
        else:
            out = tp(x1, x2, weight, graph=graph)
        yield
        (gradient,) = torch.autograd.grad(out.square().sum(), x2, create_graph=True)
        yield
        weights = (hidden, matrix) if way == "radial" else (weight,)
        torch.autograd.grad(gradient.square().sum(), (x1, *weights))
        yield

    first, second = _marks(steps()), _marks(steps())
    result: dict[str, dict[str, float]] = {"seconds": {}, "compiled": {}}
    for index, step in enumerate(STEPS):
        (cold, kernels), (warm, _) = first[index], second[index]
        result["seconds"][step], result["compiled"][step] = cold - warm, kernels
    return result


def _marks(steps: Iterator[None]) -> list[tuple[float, int]]:
    """Seconds and newly compiled kernels of each step."""

    def mark() -> tuple[float, int]:
        return time.perf_counter(), len(list(cache_folder().glob("*.so")))

    marks = [mark(), *(mark() for _ in steps)]
    return [(end - start, after - before) for (start, before), (end, after) in pairwise(marks)]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.first_call`."""
    parser = argparse.ArgumentParser(prog="first_call", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
