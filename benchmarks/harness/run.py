"""Runs families: a process for each family, dtype and number of threads; table, JSON and report."""

from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from eqtp.benchmarks.harness.ceilings import Ceilings, measure_ceilings
from eqtp.benchmarks.harness.family import Choice, Family
from eqtp.benchmarks.harness.measure import Options, add_pass, key_of, measure, roofline
from eqtp.benchmarks.harness.memory import LARGE_PAGES, keep_freed_memory, limit_memory
from eqtp.benchmarks.harness.providers import versions
from eqtp.benchmarks.harness.record import write_record
from eqtp.benchmarks.harness.report import write_report
from eqtp.benchmarks.harness.table import summary, table
from eqtp.benchmarks.timing import (
    WorkerError,
    device_name,
    machine,
    results_folder,
    worker,
    write_json,
)

__all__ = ["FAMILIES", "add_arguments", "main", "raise_ceilings", "run_families"]

MODULE = "eqtp.benchmarks.harness.run"
FAMILIES = {
    "products": "SISO, SIMO, MIMO over L: every method, expressivity beside time",
    "channelwise": "the products of MACE, NequIP, SevenNet and others, row by row; the bars",
    "fully_connected": "the products of DiffDock, e3tools and tetris",
    "convolution": "message passing on crystals, water and molecules",
    "symmetric_contraction": "the many-body products of MACE",
    "gaunt": "products on the sphere beside Clebsch-Gordan, even and odd paths",
    "so2": "convolutions in the frames of the edges beside Clebsch-Gordan",
    "matrix": "products of 3 x 3 and larger matrices beside Clebsch-Gordan",
    "spherical_harmonics": "values and derivatives up to degree 11",
    "models": "energies, forces and training steps of MACE, TensorNet and ESCN",
}
"""Modules of `eqtp.benchmarks`, and what they measure."""

PARALLEL = ("channelwise", "convolution", "models")
"""Families of which a full run measures large cases with all cores as well."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every family."""
    parser.add_argument("--quick", action="store_true", help="a few small cases: minutes in all")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="default: 1; the graphs' families all cores as well"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "float64"])
    parser.add_argument("--seconds", type=float, help="timed rounds of one task of a case")
    parser.add_argument(
        "--passes", type=int, help="over all cases, a share of the rounds each; default: 2, quick 1"
    )
    parser.add_argument("--only", nargs="+", default=[], help="parts of contestants' names")
    parser.add_argument("--cases", nargs="+", default=[], help="parts of cases' names")
    parser.add_argument("--compiled", action="store_true", help="torch.compile takes part: slow")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="of the table")
    parser.add_argument(
        "--memory",
        default="kept",
        choices=["kept", "system"],
        help="freed memory stays with the process, or goes where glibc sends it by default",
    )
    parser.add_argument("--output", type=Path, help="the JSON file; the report stands beside it")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--family", choices=FAMILIES, help=argparse.SUPPRESS)
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)


def run_families(families: Sequence[str], args: argparse.Namespace) -> int:
    """Measures families one after the other; returns 1 where a family ended in an error."""
    name = families[0] if len(families) == 1 else "suite"
    default = results_folder(args.device) / f"{name}{'-quick' if args.quick else ''}.json"
    output: Path = args.output or default
    record: dict[str, Any] = {
        "machine": machine() | {"device": device_name(args.device)},
        "providers": versions(),
        "quick": args.quick,
        "clock": args.clock,
        "memory": args.memory,
        "ceilings": {},
        "failed": {},
        "costs": {},
        "rows": [],
    }
    start = time.perf_counter()
    for number in range(_passes(args)):
        args.again = number > 0
        for family in families:
            for threads in _threads(family, args):
                for dtype in args.dtype:
                    _run_one(family, threads, dtype, args, record)
                    record["seconds"] = time.perf_counter() - start
                    write_record(output, record)

    page = output.with_suffix(".html")
    write_report(page, record)
    print(summary(record))
    print(f"written: {output}\n         {page}")
    return 1 if record["failed"] else 0


def _passes(args: argparse.Namespace) -> int:
    """Passes over all cases: what else a machine does for a minute meets a case in one of them."""
    return int(args.passes or (1 if args.quick else 2))


def _threads(family: str, args: argparse.Namespace) -> list[int]:
    """One thread, and all cores for the families of whole graphs, unless asked for."""
    if args.device != "cpu":
        return [args.threads[0] if args.threads else torch.get_num_threads()]
    if args.threads:
        return list(args.threads)
    many = family in PARALLEL and not args.quick
    return sorted({1, torch.get_num_threads()}) if many else [1]


def _run_one(
    family: str, threads: int, dtype: str, args: argparse.Namespace, record: dict[str, Any]
) -> None:
    """Adds what a process of its own measures to the record, and prints its table."""
    options: list[object] = ["--family", family, "--dtype", dtype, "--device", args.device]
    options += ["--clock", args.clock, "--memory", args.memory, "--passes", _passes(args)]
    for name in ("quick", "compiled", "again"):
        options += [f"--{name}"] * getattr(args, name)
    if threads > 1 and not args.threads and args.device == "cpu":
        options.append("--large")
    for name in ("only", "cases"):
        options += [f"--{name}", *getattr(args, name)] if getattr(args, name) else []
    if args.seconds is not None:
        options += ["--seconds", args.seconds]
    name = f"{family}, {threads} thread(s), {dtype}"
    if args.again and name in record["failed"]:
        return
    name += ", again" * args.again
    environment = LARGE_PAGES if args.memory == "kept" else {}
    try:
        answer = worker(MODULE, threads, *options, environment=environment)
    except WorkerError as error:
        record["failed"][name] = str(error)
        if error.answer is None:
            return
        answer = error.answer
        record["failed"][name] += f" Measured before: {', '.join(answer['costs']) or 'no case'}."
    record["costs"][name] = answer["costs"]
    rows = answer["rows"]
    if args.again:
        add_pass(record["rows"], rows, args.clock)
        found = {key_of(row) for row in rows}
        rows = [row for row in record["rows"] if key_of(row) in found]
    else:
        record["rows"] += rows
    raise_ceilings(record, threads, answer["ceilings"])
    print(table(rows, args.clock), flush=True)


def raise_ceilings(record: dict[str, Any], threads: int, found: Mapping[str, Any]) -> None:
    """Keeps the highest rates that any process measured, and every row's share of them."""
    ceilings = Ceilings(**found)
    if str(threads) in record["ceilings"]:
        ceilings = ceilings.raised_to(Ceilings(**record["ceilings"][str(threads)]))
    record["ceilings"][str(threads)] = ceilings.as_dict()
    for row in record["rows"]:
        if row["threads"] == threads and "roofline" in row:
            row["roofline"] = roofline(row, ceilings, record["clock"])


def measure_family(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What a family has measured in this process, from case to case, with a progress bar."""
    from tqdm import tqdm

    if args.memory == "kept":
        keep_freed_memory()
    if args.device == "cpu":
        limit_memory()
    threads, dtype = args.threads[0], getattr(torch, args.dtype[0])
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)  # some rivals read it
    torch.set_float32_matmul_precision("highest")
    family = cast("Family", importlib.import_module(f"eqtp.benchmarks.{args.family}"))
    choice = Choice(args.quick, dtype, args.compiled, args.device, args.large)
    passes = _passes(args)
    seconds = args.seconds or (0.5 if args.quick else 2.0)
    options = Options(
        device=args.device,
        threads=threads,
        seconds=seconds / passes,
        min_rounds=5 if passes == 1 else 2,
        max_rounds=(10 if args.quick else 30) // passes,
        most_seconds=2.0 if args.quick else 10.0,
        clock=args.clock,
        only=args.only,
        again=args.again,
    )
    cases = [c for c in family.cases(choice) if _wanted(c.name, args.cases)]
    ceilings = measure_ceilings(args.device, threads)
    answer: dict[str, Any] = {"ceilings": ceilings.as_dict(), "rows": [], "costs": {}}
    yield answer
    for case in (bar := tqdm(cases, desc=f"{args.family}, {threads} thread(s)", leave=False)):
        bar.set_postfix_str(case.name)
        start = _elapsed()
        for found in measure(case, options, ceilings):
            answer["rows"] += found
        taken = {clock: now - start[clock] for clock, now in _elapsed().items()}
        answer["costs"][case.name] = taken
        yield answer


def _elapsed() -> dict[str, float]:
    """Seconds on the wall, of CPU time with that of child processes, and of these alone."""
    cpu = os.times()
    return {"wall": time.perf_counter(), "cpu": sum(cpu[:4]), "compilers": sum(cpu[2:4])}


def _wanted(name: str, parts: Sequence[str]) -> bool:
    return not parts or any(part in name for part in parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the processes that measure."""
    parser = argparse.ArgumentParser(prog="eqtp bench")
    add_arguments(parser)
    args = parser.parse_args(argv)
    for answer in measure_family(args):  # what a killed process had measured is not lost
        write_json(args.worker, answer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
