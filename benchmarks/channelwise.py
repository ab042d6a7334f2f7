"""The channelwise product with message passing beside e3nn, error beside time.

20,000 edges of a random graph with 800 nodes, 64 channels, node features and results up to degree
2 and 3, harmonics up to 3 (17 paths), float32: out[dst] += tp(x1[src], x2, weight). Three tasks:

    forward           the sum at receivers
    forward+backward  and the gradients in x1, x2 and weight
    force loss        and the gradient in x2 (what forces need), the sum of its squares, and the
                      gradients of that in x1 and weight (second derivatives)

The contestants take turns in one process; each number of threads has a process of its own. The
ceiling of the forward pass is the slower of its memory traffic at the measured rate of reading and
its arithmetic at the measured rate of multiply-adds.

    .venv/bin/python -m eqtp.benchmarks.channelwise
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import eqtp
from eqtp.benchmarks.timing import (
    alternate,
    machine,
    relative_error,
    results_folder,
    worker,
    write_json,
)
from eqtp.kernels.channelwise._program import path_program
from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.compiler import load_library

MODULE = "eqtp.benchmarks.channelwise"
NUM_EDGES, NUM_NODES, CHANNELS = 20_000, 800, 64
BARS = {"forward": {1: 60, 2: 50}, "forward+backward": {1: 40, 2: 40}, "force loss": {1: 30, 2: 30}}

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench channelwise`."""
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--output", type=Path, default=results_folder() / "channelwise.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        write_json(args.worker, measure(args.threads[0], args.repetitions))
        return 0
    record: dict[str, Any] = {"machine": machine(), "threads": {}}
    for threads in args.threads:
        record["threads"][threads] = worker(MODULE, threads, "--repetitions", args.repetitions)
    write_json(args.output, record)
    print(table(record))
    print(f"written: {args.output}")
    return 0


def measure(threads: int, repetitions: int) -> dict[str, Any]:
    """Errors and times of every contestant in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    irreps = "+".join(f"{CHANNELS}x{l}{'eo'[l % 2]}" for l in range(4))
    in1 = "+".join(irreps.split("+")[:3])
    harmonics = "0e+1o+2e+3o"
    tp = eqtp.ChannelwiseTensorProduct(in1, harmonics, irreps, layout="ir_mul")
    torch_tp = eqtp.ChannelwiseTensorProduct(
        in1, harmonics, irreps, layout="ir_mul", backend="torch"
    )
    src = torch.randint(NUM_NODES, (NUM_EDGES,))
    dst = torch.randint(NUM_NODES, (NUM_EDGES,)).sort().values
    graph = eqtp.Graph(src, dst, NUM_NODES)
    contestants: dict[str, tuple[Product, str]] = {
        "e3nn": (_e3nn(tp, src, dst), "mul_ir"),
        "eqtp torch": (lambda x1, x2, w: torch_tp(x1, x2, w, graph=graph), "ir_mul"),
        "eqtp": (lambda x1, x2, w: tp(x1, x2, w, graph=graph), "ir_mul"),
    }
    operands = [
        torch.randn(NUM_NODES, tp.irreps_in1.dim),
        torch.randn(NUM_EDGES, tp.irreps_in2.dim),
        torch.randn(NUM_EDGES, tp.weight_numel),
    ]
    result: dict[str, Any] = {
        "threads": threads,
        "explanation": tp.explain(),
        "ceiling": _ceiling(tp, threads),
        "errors": {},
        "times": {},
    }
    for task, function in TASKS.items():
        calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
        for name, (product, layout) in contestants.items():
            inputs = [operands[0], *operands[1:]]
            if layout == "ir_mul":
                inputs[0] = eqtp.layout.to_layout(inputs[0], tp.irreps_in1, "mul_ir", "ir_mul")
            leaves = [t.clone().requires_grad_(task != "forward") for t in inputs]
            calls[name] = partial(function, product, *leaves)
        result["errors"][task] = {
            name: relative_error(
                *(_same_in_all_layouts(t, task) for t in (call(), calls["e3nn"]()))
            )
            for name, call in calls.items()
        }
        samples = alternate(calls, repetitions=repetitions, warmup=2)
        result["times"][task] = {name: sample.summary() for name, sample in samples.items()}
    return result


def _same_in_all_layouts(results: tuple[Tensor, ...], task: str) -> Tensor:
    """The squared norm of the result, or the gradient in the weights."""
    return results[-1].square().sum() if task == "forward" else results[-1]


def forward(product: Product, x1: Tensor, x2: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The sum at receivers."""
    return (product(x1, x2, weight),)


def forward_backward(
    product: Product, x1: Tensor, x2: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    """Gradients in all operands."""
    return torch.autograd.grad(product(x1, x2, weight).sum(), (x1, x2, weight))


def force_loss(product: Product, x1: Tensor, x2: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the squared gradient in x2."""
    (grad,) = torch.autograd.grad(product(x1, x2, weight).sum(), x2, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), (x1, weight))


TASKS = {"forward": forward, "forward+backward": forward_backward, "force loss": force_loss}


def _e3nn(tp: Any, src: Tensor, dst: Tensor) -> Product:
    from e3nn import o3

    theirs: Any = o3.TensorProduct(  # type: ignore[attr-defined, unused-ignore]
        tp.irreps_in1,
        tp.irreps_in2,
        tp.irreps_out,
        tp.instructions,
        shared_weights=False,
        internal_weights=False,
    )

    def product(x1: Tensor, x2: Tensor, weight: Tensor) -> Tensor:
        messages: Tensor = theirs(x1.index_select(0, src), x2, weight)
        return messages.new_zeros(NUM_NODES, messages.shape[1]).index_add(0, dst, messages)

    return product


def _ceiling(tp: Any, threads: int) -> dict[str, float]:
    """The least time of a forward pass by the machine's measured rates, in seconds."""
    numbers = NUM_EDGES * (tp.weight_numel + tp.irreps_in2.dim)
    numbers += NUM_NODES * (tp.irreps_in1.dim + tp.irreps_out.dim)
    flops = 0
    for path in tp.problem.paths:
        program = path_program(tp.problem.degrees(path), path.coefficient, path.has_weight)
        program = program.specialize({"x", "y", "w"}, {"out"})
        flops += NUM_EDGES * (CHANNELS * program.count("channel") + program.count("edge"))
    read, multiply = _read_rate(threads), _multiply_add_rate(threads)
    return {
        "bytes": 4.0 * numbers,
        "flops": float(flops),
        "read_bytes_per_second": read,
        "flops_per_second": multiply,
        "seconds": max(4.0 * numbers / read, flops / multiply),
    }


_RATES = (
    cpp.prelude(torch.float32)
    + cpp.EXPORT
    + """ void read_all(const real* x, int64_t size, real* sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < size; block += 65536) {
        vec sum[8] = {};
        for (int64_t i = block; i < block + 65536; i += 8 * LANES)
            for (int k = 0; k < 8; ++k) sum[k] += load(x + i + k * LANES);
        for (int k = 1; k < 8; ++k) sum[0] += sum[k];
        sums[block / 65536] = sum_lanes(sum[0]);
    }
}
"""
    + cpp.EXPORT
    + """ int multiply_add(int64_t rounds, real* sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
        vec a0 = vec{} + 1, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
        const vec b = vec{} + sums[0], c = vec{} + sums[1];
        for (int64_t i = 0; i < rounds; ++i) {
            a0 = a0 * b + c; a1 = a1 * b + c; a2 = a2 * b + c; a3 = a3 * b + c;
            a4 = a4 * b + c; a5 = a5 * b + c; a6 = a6 * b + c; a7 = a7 * b + c;
        }
        sums[2 + thread] = sum_lanes(a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7);
    }
    return 16 * LANES;
}
"""
)


def _read_rate(threads: int) -> float:
    """Bytes per second of reading 256 MiB once, fastest of ten."""
    x = torch.ones(1 << 26)
    sums = torch.empty(1 << 10)
    library = load_library(_RATES)
    seconds = _fastest(
        lambda: library.read_all(*_pointers(x), x.numel(), *_pointers(sums), threads)
    )
    return x.numel() * x.element_size() / seconds


def _multiply_add_rate(threads: int) -> float:
    """Float32 operations per second of all threads, two per multiply-add, fastest of ten."""
    sums = torch.full((2 + threads,), 0.5)
    library, rounds = load_library(_RATES), 10_000_000
    per_round = library.multiply_add(1, *_pointers(sums), 1)
    seconds = _fastest(lambda: library.multiply_add(rounds, *_pointers(sums), threads))
    return float(rounds * per_round * threads / seconds)


def _pointers(*tensors: Tensor) -> list[Any]:
    from ctypes import c_void_p

    return [c_void_p(tensor.data_ptr()) for tensor in tensors]


def _fastest(call: Callable[[], object]) -> float:
    times = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def table(record: dict[str, Any]) -> str:
    """Medians and quartiles in ms, ratios to e3nn, errors, and the share of the ceiling."""
    lines = []
    for threads, result in record["threads"].items():
        lines.append(
            f"\n{NUM_EDGES:,} edges, {NUM_NODES} nodes, {CHANNELS} channels, 17 paths, float32, "
            f"{threads} thread(s); wall clock, median [quartiles] in ms"
        )
        lines.append(f"{'':20}{'':12}{'ms':>26}{'fastest':>10}{'ratio':>8}{'error':>10}")
        for task, times in result["times"].items():
            base = times["e3nn"]["wall"]["median"]
            for name, clocks in times.items():
                wall = clocks["wall"]
                low, high = wall["quartiles"]
                cell = f"{1e3 * wall['median']:.1f} [{1e3 * low:.1f}, {1e3 * high:.1f}]"
                lines.append(
                    f"{task:20}{name:12}{cell:>26}{1e3 * wall['min']:10.1f}"
                    f"{base / wall['median']:8.1f}{result['errors'][task][name]:10.1e}"
                )
            lines.append(f"{'':20}bar: {BARS[task].get(int(threads), '-')} times faster than e3nn")
        ceiling = result["ceiling"]
        fastest = result["times"]["forward"]["eqtp"]["wall"]["min"]
        lines.append(
            f"forward ceiling {1e3 * ceiling['seconds']:.1f} ms "
            f"({ceiling['read_bytes_per_second'] / 1e9:.1f} GB/s, "
            f"{ceiling['flops_per_second'] / 1e9:.0f} GFLOP/s): "
            f"{100 * ceiling['seconds'] / fastest:.0f} % of it reached (bar 45 %)"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.channelwise`."""
    parser = argparse.ArgumentParser(prog="channelwise", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
