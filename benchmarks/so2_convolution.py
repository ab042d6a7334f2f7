"""Convolutions with edge directions: time and memory against the largest degree.

Channel-mixing, 64 channels of every degree up to lmax on both sides, 20,000 edges of a random graph
with 800 nodes, float32: out[dst] += conv(x[src], vector). The same function, three times:

    cg      `TensorProduct` with the harmonics of the edges, every path ("uvw")
    plain   an eSCN in plain PyTorch: Wigner matrices of all edges stored, batched products
    so2     `SO2Convolution`

forward and forward + backward (gradients in x, the vectors and the weights). The contestants take
turns in one process per lmax; where a contestant would take too long or too much memory it gets
fewer edges, which the table says, and its time per edge is what is compared. Memory is the growth
of the process's peak over one forward + backward, in a process per contestant and number of edges;
the memory per edge is the slope between 2000 and 4000 edges.

    .venv/bin/python -m eqtp.benchmarks.so2_convolution [--lmax 1 2 3 4 5 6 7 8]
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import eqtp
from eqtp.benchmarks.so2_plain import PlainESCN
from eqtp.benchmarks.timing import (
    alternate,
    machine,
    relative_error,
    results_folder,
    worker,
    write_json,
)
from eqtp.so3 import spherical_harmonics

MODULE = "eqtp.benchmarks.so2_convolution"
NUM_EDGES, NUM_NODES, CHANNELS = 20_000, 800, 64
MEMORY_EDGES = 4000
# Edges on which a contestant is timed; 20,000 where nothing is said. CG with 489 paths (lmax 8)
# takes 10 ms per edge, a plain eSCN at lmax 8 holds 0.5 MB per edge.
FEWER_EDGES = {
    "cg": {3: 10_000, 4: 4000, 5: 2000, 6: 1000, 7: 600, 8: 400},
    "plain": {5: 10_000, 6: 10_000, 7: 5000, 8: 5000},
}
CONTESTANTS = ("cg", "plain", "so2")

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench so2_convolution`."""
    parser.add_argument("--lmax", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--edges", type=int, default=NUM_EDGES, help="at most so many")
    parser.add_argument("--output", type=Path, default=results_folder() / "so2_convolution.json")
    parser.add_argument("--memory", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        torch.set_num_threads(args.threads)
        (lmax,) = args.lmax
        if args.memory:
            answer = {"peak": peak_memory(args.memory, lmax, args.edges)}
        else:
            answer = measure(lmax, args.edges, args.repetitions)
        write_json(args.worker, answer)
        return 0
    record: dict[str, Any] = {"machine": machine(), "threads": args.threads, "lmax": {}}
    print(HEAD)
    for lmax in args.lmax:
        options = ("--lmax", lmax, "--edges", args.edges, "--repetitions", args.repetitions)
        result = worker(MODULE, args.threads, *options)
        result["bytes_per_edge"] = {
            name: _bytes_per_edge(name, lmax, args.threads) for name in CONTESTANTS
        }
        record["lmax"][lmax] = result
        print(row(lmax, result), flush=True)
        write_json(args.output, record)
    print(f"written: {args.output}")
    return 0


def _bytes_per_edge(name: str, lmax: int, threads: int) -> float:
    peaks = [
        worker(MODULE, threads, "--lmax", lmax, "--memory", name, "--edges", edges)["peak"]
        for edges in (MEMORY_EDGES // 2, MEMORY_EDGES)
    ]
    slope: float = (peaks[1] - peaks[0]) / (MEMORY_EDGES // 2)
    return slope


def make_irreps(lmax: int) -> eqtp.Irreps:
    """64 channels of every degree, natural parities."""
    return eqtp.Irreps([(CHANNELS, (l, (-1) ** l)) for l in range(lmax + 1)])


def contestant(
    name: str, conv: eqtp.SO2Convolution, num_edges: int
) -> tuple[Convolution, tuple[Tensor, Tensor]]:
    """A function of x, vectors and weights, and its edges."""
    generator = torch.Generator().manual_seed(0)
    src = torch.randint(NUM_NODES, (NUM_EDGES,), generator=generator)
    dst = torch.randint(NUM_NODES, (NUM_EDGES,), generator=generator)
    src, dst = src[:num_edges], dst[:num_edges].sort().values
    graph = eqtp.Graph(src, dst, NUM_NODES)
    if name == "so2":
        return lambda x, r, w: conv(x, r, w, graph=graph), (src, dst)
    lmax = conv.irreps_in.lmax
    if name == "plain":
        plain = PlainESCN(lmax, torch.float32)

        def escn(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
            nodes = x.unflatten(1, (-1, CHANNELS))
            return plain(nodes, r, conv.matrices(w), src, dst).flatten(1)

        return escn, (src, dst)
    problem = conv.problem
    tp = eqtp.TensorProduct(
        problem.irreps_in1,
        problem.irreps_in2,
        problem.irreps_out,
        problem.instructions,
        "none",
        "none",
        internal_weights=False,
        layout="ir_mul",
    )
    degrees = [ir.l for _, ir in problem.irreps_in2]
    columns = torch.tensor([l * l + m for l in degrees for m in range(2 * l + 1)])

    def cg(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
        harmonics = spherical_harmonics(2 * lmax, r).index_select(1, columns)
        out: Tensor = tp(x, harmonics, w, graph=graph)
        return out

    return cg, (src, dst)


def operands(name: str, conv: eqtp.SO2Convolution, num_edges: int) -> list[Tensor]:
    """Features, vectors and weights, the same for every contestant."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_NODES, conv.irreps_in.dim, generator=generator)
    vectors = torch.randn(NUM_EDGES, 3, generator=generator)[:num_edges]
    weight = torch.randn(conv.weight_numel, generator=generator) / conv.irreps_in.dim**0.5
    if name == "cg":
        weight = conv.effective_path_weights(weight)
    return [t.clone().requires_grad_() for t in (x, vectors, weight)]


def forward_backward(function: Convolution, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of half the squared result."""
    out = function(*leaves)
    return torch.autograd.grad(out, list(leaves), out)


def forward(function: Convolution, leaves: Sequence[Tensor]) -> Tensor:
    """The result, without a graph of autograd."""
    with torch.no_grad():
        return function(*leaves)


def measure(lmax: int, max_edges: int, repetitions: int) -> dict[str, Any]:
    """Errors and times of every contestant in this process."""
    torch.manual_seed(0)
    irreps = make_irreps(lmax)
    conv = eqtp.SO2Convolution(irreps, irreps, group="SO3", internal_weights=False, layout="ir_mul")
    edges = {
        name: min(max_edges, FEWER_EDGES.get(name, {}).get(lmax, NUM_EDGES)) for name in CONTESTANTS
    }
    calls: dict[str, Callable[[], object]] = {}
    for name, count in edges.items():
        function, _ = contestant(name, conv, count)
        leaves = operands(name, conv, count)
        calls[f"{name} forward"] = partial(forward, function, leaves)
        calls[f"{name} forward+backward"] = partial(forward_backward, function, leaves)
    samples = alternate(calls, repetitions=repetitions, warmup=1)
    return {
        "edges": edges,
        "errors": _errors(conv),
        "times": {name: sample.summary() for name, sample in samples.items()},
    }


def _errors(conv: eqtp.SO2Convolution, num_edges: int = 100) -> dict[str, dict[str, float]]:
    """Relative errors of float32 against "so2" in float64, on a few edges."""
    function, _ = contestant("so2", conv, num_edges)
    exact = [t.detach().double().requires_grad_() for t in operands("so2", conv, num_edges)]
    wanted = (forward(function, exact), *forward_backward(function, exact)[:2])
    errors = {}
    for name in CONTESTANTS:
        function, _ = contestant(name, conv, num_edges)
        leaves = operands(name, conv, num_edges)
        got = (forward(function, leaves), *forward_backward(function, leaves)[:2])
        pairs = zip(("out", "x", "vectors"), got, wanted, strict=True)
        errors[name] = {what: relative_error(value, other) for what, value, other in pairs}
    return errors


def peak_memory(name: str, lmax: int, num_edges: int) -> int:
    """Growth of the process's peak memory over one forward + backward, in bytes."""
    irreps = make_irreps(lmax)
    conv = eqtp.SO2Convolution(irreps, irreps, group="SO3", internal_weights=False, layout="ir_mul")
    few, _ = contestant(name, conv, 16)
    forward_backward(few, operands(name, conv, 16))  # what is loaded once
    function, _ = contestant(name, conv, num_edges)
    leaves = operands(name, conv, num_edges)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward_backward(function, leaves)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


HEAD = """\
CPU time per edge in us (forward / forward+backward), on so many edges; KB of memory per edge; error
of the gradient in the vectors
| lmax | cg | edges | plain eSCN | edges | so2 | edges | cg/so2 | plain/so2 | KB: cg | plain \
| so2 | error: cg | plain | so2 |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def row(lmax: int, result: dict[str, Any]) -> str:
    """A line of the table."""
    per_edge = {
        (name, task): 1e6 * result["times"][f"{name} {task}"]["cpu"]["min"] / result["edges"][name]
        for name in CONTESTANTS
        for task in ("forward", "forward+backward")
    }
    whole = {name: per_edge[name, "forward+backward"] for name in CONTESTANTS}
    cells: list[object] = [lmax]
    for name in CONTESTANTS:
        cells += [f"{per_edge[name, 'forward']:.1f} / {whole[name]:.1f}", result["edges"][name]]
    cells += [f"{whole[name] / whole['so2']:.1f}" for name in ("cg", "plain")]
    cells += [f"{result['bytes_per_edge'][name] / 1000:.1f}" for name in CONTESTANTS]
    cells += [f"{result['errors'][name]['vectors']:.1e}" for name in CONTESTANTS]
    return f"| {' | '.join(map(str, cells))} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.so2_convolution`."""
    parser = argparse.ArgumentParser(
        prog="eqtp bench so2_convolution", description=str(__doc__).split("\n")[0]
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
