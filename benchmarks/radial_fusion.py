"""The radial network's last layer inside the convolution and outside of it: time and memory.

Periodic diamond, 1000 atoms, 158,000 edges (6 Å), the convolution of a large MACE (128 channels, 17
paths), hidden features of 64 columns, float32, forward and backward, each way in a process of its
own. Stored, the weights are 1.4 GB; the bar is a peak below 1 GB above the inputs and no more time.

    .venv/bin/python -m eqtp.benchmarks.radial_fusion
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import eqtp
from eqtp.benchmarks.timing import machine, results_folder, worker, write_json
from eqtp.benchmarks.training_step import resident

MODULE = "eqtp.benchmarks.radial_fusion"
CHANNELS, HIDDEN, R_MAX = 128, 64, 6.0
WAYS = ("fused", "stored")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench radial_fusion`."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=results_folder() / "radial_fusion.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        write_json(args.worker, measure(args.way, args.repetitions))
        return 0
    options = ("--repetitions", args.repetitions)
    record: dict[str, Any] = {"machine": machine(), "threads": args.threads}
    record |= {way: worker(MODULE, args.threads, *options, "--way", way) for way in WAYS}
    write_json(args.output, record)
    for way in WAYS:
        measured = record[way]
        print(
            f"{way:8}{min(measured['cpu']):8.2f} s CPU {min(measured['wall']):8.2f} s wall, "
            f"peak {measured['peak_bytes'] / 1e9:.2f} GB above the inputs"
        )
    return 0


def measure(way: str, repetitions: int) -> dict[str, Any]:
    """Times of forward and backward, and the peak of this process's memory."""
    from ase.build import bulk
    from vesin import NeighborList

    torch.manual_seed(0)
    atoms = bulk("C", "diamond", a=3.57, cubic=True) * (5, 5, 5)
    pairs = NeighborList(cutoff=R_MAX, full_list=True).compute(
        atoms.positions, atoms.cell.array, True, "ij"
    )
    src, dst = (torch.from_numpy(index.astype("int64")) for index in pairs)
    graph = eqtp.Graph(src, dst, len(atoms))
    irreps = "+".join(f"{CHANNELS}x{l}{'eo'[l % 2]}" for l in range(4))
    in1 = "+".join(irreps.split("+")[:3])
    tp = eqtp.ChannelwiseTensorProduct(in1, "0e+1o+2e+3o", irreps, layout="ir_mul")
    shapes = (
        (len(atoms), tp.irreps_in1.dim),
        (len(src), tp.irreps_in2.dim),
        (len(src), HIDDEN),
        (HIDDEN, tp.weight_numel),
    )
    x1, x2, hidden, matrix = (torch.randn(shape).requires_grad_() for shape in shapes)
    result: dict[str, Any] = {"num_edges": len(src), "wall": [], "cpu": []}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    for _ in range(repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        if way == "fused":
            out = tp(x1, x2, radial=(hidden, matrix), graph=graph)
        else:
            out = tp(x1, x2, hidden @ matrix, graph=graph)
        torch.autograd.grad(out.sum(), (x1, x2, hidden, matrix))
        result["wall"].append(time.perf_counter() - wall)
        result["cpu"].append(time.process_time() - cpu)
    return result | {"peak_bytes": resident("VmHWM") - before}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.radial_fusion`."""
    parser = argparse.ArgumentParser(prog="radial_fusion", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
