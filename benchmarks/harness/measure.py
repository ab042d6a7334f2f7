"""Measures a case: contestants are checked first, then timed in turns.

Refused, not reported: an empty or vanishing result, a result or gradient that differs from the
float64 definition by more than the tolerance (NaN included), a contestant that is still being set
up when the clock runs. Absent: a contestant whose package or device is not there, or that says it
cannot serve. Both are listed with the reason.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eqtp.benchmarks.harness.case import TASKS, Case, Contestant, Inputs, Work, tolerance
from eqtp.benchmarks.harness.ceilings import Ceilings
from eqtp.benchmarks.harness.memory import peak_bytes
from eqtp.benchmarks.timing import Samples, alternate, settle

__all__ = [
    "Options",
    "Refusal",
    "Row",
    "add_pass",
    "key_of",
    "measure",
    "measured_by_key",
    "roofline",
]

Row = dict[str, Any]
"""One line of a report; see `benchmarks/README.md` for the fields."""

LATE_SETUP, LATE_SECONDS = 5.0, 0.1
"""A first sample of so many times the largest of the others, and so much longer, set something up:
compilers take longer, and on a busy machine a process waits for tens of milliseconds."""


SAMPLE = 4e-3
"""Seconds that a sample of a quick call takes, as the mean of so many calls."""

LONG = 1.0
"""Calls of so many seconds are warm once they have been made three times."""

PRIMED = 20e-3
"""Calls below so many seconds follow one that is not timed. What the other contestants left in the
caches (some MB, 1 ms of reading) would be a twentieth of a longer call and most of a shorter one,
and whether a sample is one call or the mean of four would decide how much of it is seen."""


class Refusal(Exception):
    """Why a contestant's times are not reported."""


@dataclass(frozen=True)
class Options:
    """How long and with what to measure.

    Attributes:
        device: "cpu" or a GPU's name.
        threads: For the record and the bars; set by the caller.
        seconds: Time for the timed rounds of one task of a case.
        min_rounds: Rounds at least, however long they take; 2 or more.
        max_rounds: Rounds at most.
        most_seconds: Contestants whose calls take longer are left out, with the reason.
        clock: "wall" or "cpu": of which the roofline and the times per number are.
        only: Parts of names of contestants; the others are left out. Empty: all.
        again: Whether this is a later pass: contestants have been checked and are only timed.
    """

    device: str = "cpu"
    threads: int = 1
    seconds: float = 5.0
    min_rounds: int = 5
    max_rounds: int = 30
    most_seconds: float = 10.0
    clock: str = "wall"
    only: Sequence[str] = ()
    again: bool = False


@dataclass
class _Ready:
    """A contestant that may be timed on one task."""

    call: Callable[[], object]
    row: Row
    estimate: float


def measure(case: Case, options: Options, ceilings: Ceilings | None = None) -> Iterator[list[Row]]:
    """The rows of each task of a case, task after task.

    Raises:
        ValueError: The baseline is not among the contestants, or a task is unknown.
    """
    if case.baseline not in case.contestants or not set(case.tasks) <= set(TASKS):
        raise ValueError(
            f"{case.family} {case.name}: baseline must be one of {list(case.contestants)} and "
            f"tasks of {list(TASKS)}, got {case.baseline!r} and {list(case.tasks)}"
        )
    wanted = {
        name: make
        for name, make in case.contestants.items()
        if not options.only or name == case.baseline or any(part in name for part in options.only)
    }
    full = case.inputs(case.rows).to(case.dtype, options.device)
    built: dict[str, Contestant | str] = {}
    seconds: dict[str, float] = {}
    for name, make in wanted.items():
        start = time.perf_counter()
        built[name] = _build(make)
        seconds[name] = time.perf_counter() - start
    for task in case.tasks:
        yield _measure_task(case, task, full, options, ceilings, built, seconds)


def _build(make: Callable[[], Contestant]) -> Contestant | str:
    """The contestant, or why it is absent: what it cannot do, it says when it is made."""
    try:
        return make()
    except (NotImplementedError, ImportError, ValueError) as error:
        return _first_line(error)


def _measure_task(
    case: Case,
    task: str,
    full: Inputs,
    options: Options,
    ceilings: Ceilings | None,
    built: dict[str, Contestant | str],
    seconds: dict[str, float],
) -> list[Row]:
    rows: dict[str, Row] = {}
    ready: dict[str, _Ready] = {}
    for name, contestant in built.items():
        row = rows[name] = _empty_row(case, task, name, options)
        if isinstance(contestant, str):
            row |= {"status": "absent", "reason": contestant}
            continue
        try:
            ready[name] = _prepare(case, task, full, contestant, options, row)
            row["setup_seconds"] += seconds[name]
        except NotImplementedError as error:
            row |= {"status": "absent", "reason": _first_line(error)}
        except Refusal as error:
            row |= {"status": "refused", "reason": str(error)}
        except Exception as error:  # a rival's own failure must not end the run
            row |= {"status": "refused", "reason": f"{type(error).__name__}: {_first_line(error)}"}
    if ready:
        _time(case, task, ready, options, ceilings)
    return list(rows.values())


def _empty_row(case: Case, task: str, name: str, options: Options) -> Row:
    return {
        "family": case.family,
        "case": case.name,
        "task": task,
        "contestant": name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "device": options.device,
        "threads": options.threads,
        "rows": case.rows,
        "sizes": dict(case.sizes),
        "group": case.group,
        "x": case.x,
        "baseline": case.baseline,
    }


def _prepare(
    case: Case, task: str, full: Inputs, contestant: Contestant, options: Options, row: Row
) -> _Ready:
    """Checks a contestant, calls it for the first time at full size, measures its memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of compilers, about what they could do better
        start = time.perf_counter()
        if not options.again:
            row |= check(case, task, contestant, options.device)
        inputs = _adapted(case, contestant, full, options.device, task)
        with torch.no_grad():
            out = contestant.call(inputs.tensors, inputs.place)
        row["outputs"] = out.numel()
        gradient = torch.randn_like(out) if task != "forward" else None
        call = partial(TASKS[task], contestant.call, inputs, gradient, case.forces)
        call()
        settle(options.device)
        row["setup_seconds"] = time.perf_counter() - start
        if options.again:
            return _Ready(call, row, _warm_up(call, options.device))
        start = time.perf_counter()
        row["peak_bytes"] = peak_bytes(call, options.device)
        settle(options.device)
        seconds = time.perf_counter() - start
        if seconds > options.most_seconds:
            raise Refusal(f"a call takes {seconds:.3g} s, more than {options.most_seconds:g} s")
        row |= {
            "paths": contestant.paths,
            "expressivity": contestant.expressivity,
            "about": contestant.about if task == case.tasks[0] else "",
        }
        return _Ready(call, row, _warm_up(call, options.device))


def check(case: Case, task: str, contestant: Contestant, device: str = "cpu") -> Row:
    """Holds a contestant against its definition in float64.

    Returns:
        The relative error, its tolerance and the number of rows it was found on.

    Raises:
        Refusal: The result is empty or vanishes, or an error is too large.
    """
    num_rows = min(case.rows, case.check_rows)
    given = case.inputs(num_rows).to(case.dtype, device)
    inputs = _adapted(case, contestant, given, device, task)
    exact = inputs.to(torch.float64, device, gradients=task != "forward")
    with torch.no_grad():
        out = contestant.definition(exact.tensors, exact.place)
    if out.numel() == 0 or not bool(out.any()):
        raise Refusal(
            f"the result is empty: {tuple(out.shape)} numbers, none of them other than zero; "
            "there is nothing to time"
        )
    generator = torch.Generator(device=device).manual_seed(1)
    gradient = torch.randn(out.shape, generator=generator, dtype=case.dtype, device=device)
    got = TASKS[task](contestant.call, inputs, gradient, case.forces)
    expected = TASKS[task](contestant.definition, exact, gradient.double(), case.forces)
    error = max(_error(a, b) for a, b in zip(got, expected, strict=True))
    limit = tolerance(case, task)
    if not error <= limit:  # NaN as well
        raise Refusal(f"error {error:.1e} against the float64 definition, at most {limit:.0e}")
    return {"error": error, "tolerance": limit, "checked_rows": num_rows}


def _error(value: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest reference."""
    if value.shape != reference.shape:
        raise Refusal(f"shape {tuple(value.shape)}, by definition {tuple(reference.shape)}")
    if reference.numel() == 0:
        return 0.0
    reference = reference.detach()
    scale = float(reference.abs().max())
    return float((value.detach().double() - reference).abs().max()) / (scale or 1.0)


def _adapted(case: Case, contestant: Contestant, inputs: Inputs, device: str, task: str) -> Inputs:
    """A contestant's own operands."""
    own = Inputs(contestant.adapt(inputs.tensors), inputs.place)
    return own.to(case.dtype, device, gradients=task != "forward")


def _warm_up(call: Callable[[], object], device: str, most: int = 10) -> float:
    """Calls until the time no longer falls, or is long; returns the last time."""
    last = float("inf")
    for _ in range(most):
        settle(device)
        start = time.perf_counter()
        call()
        settle(device)
        seconds = time.perf_counter() - start
        if seconds > min(last / 1.3, LONG):
            break
        last = seconds
    return min(seconds, last)


def _time(
    case: Case,
    task: str,
    ready: dict[str, _Ready],
    options: Options,
    ceilings: Ceilings | None,
) -> None:
    """Fills in the rows of the contestants that are ready."""
    inner = {name: min(max(int(SAMPLE / one.estimate), 1), 100) for name, one in ready.items()}
    primed = {name for name, one in ready.items() if one.estimate < PRIMED}
    total = sum((inner[name] + (name in primed)) * one.estimate for name, one in ready.items())
    rounds = min(max(int(options.seconds / total), options.min_rounds), options.max_rounds)
    calls = {name: one.call for name, one in ready.items()}

    def sample() -> dict[str, Samples]:
        return alternate(
            calls,
            repetitions=rounds,
            warmup=int(total < LONG),
            device=options.device,
            inner=inner,
            primed=primed if options.device == "cpu" else (),  # a GPU's caches are flushed
        )

    samples = sample()
    if any(is_late_setup(s.wall, inner[name]) for name, s in samples.items()):
        samples = sample()
    for name, one in ready.items():
        if is_late_setup(samples[name].wall, inner[name]):
            one.row |= {
                "status": "refused",
                "reason": "the first timed call took more than "
                f"{LATE_SETUP:g} times the others: something was still being set up",
            }
            continue
        one.row |= {"status": "measured", "reason": ""} | samples[name].summary()
    if options.again:
        return
    base = ready.get(case.baseline)
    for row in (one.row for one in ready.values() if one.row["status"] == "measured"):
        _count(case, task, row, options)
        _work_out(row, base.row if base else {}, options.clock)
        if ceilings is not None and "flops" in row:
            row["roofline"] = roofline(row, ceilings, options.clock)


def is_late_setup(samples: Sequence[float], inner: int) -> bool:
    """Whether the first sample, of `inner` calls, is far above all that follow."""
    first, others = samples[0], max(samples[1:])
    return first > LATE_SETUP * others and (first - others) * inner > LATE_SECONDS


def key_of(row: Row) -> tuple[Any, ...]:
    """What names a row; the contestant last."""
    names = ("family", "case", "task", "dtype", "device", "threads", "contestant")
    return tuple(row[name] for name in names)


def measured_by_key(rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """The rows that were measured."""
    return {key_of(row): row for row in rows if row["status"] == "measured"}


def roofline(row: Row, ceilings: Ceilings, clock: str) -> float:
    """The least time for a row's counted work over the measured one."""
    dtype = getattr(torch, row["dtype"])
    work = Work(row["flops"], row["bytes"] / dtype.itemsize)
    return ceilings.seconds(work, dtype) / float(row[clock]["median"])


def add_pass(rows: Sequence[Row], again: Sequence[Row], clock: str) -> None:
    """Adds the samples of a later pass to the rows of the first, and works out what follows."""
    later, measured = measured_by_key(again), measured_by_key(rows)
    met = {key: row for key, row in measured.items() if key in later}
    for key, row in met.items():
        both = {c: [*row[c]["samples"], *later[key][c]["samples"]] for c in ("wall", "cpu")}
        row |= Samples(**both).summary()
    for key, row in met.items():
        _work_out(row, measured.get((*key[:-1], row["baseline"]), {}), clock)


def _work_out(row: Row, base: Row, clock: str) -> None:
    """What follows from the times, the baseline's and the sizes."""
    if "wall" in base:
        row["ratio"] = {one: _ratio(base[one], row[one]) for one in ("wall", "cpu")}
    median = row[clock]["median"]
    row["seconds_per_output"] = median / row["outputs"]
    if row["expressivity"]:
        row["seconds_per_dimension"] = median / row["expressivity"]


def _ratio(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, float]:
    """The baseline's lower quartile over the contestant's; quartiles of the ratio of each round.

    What else a machine does only makes a call slower, and those most that need the memory most:
    the lower quartile has the least of it.
    """
    ratios = [b / o for b, o in zip(base["samples"], own["samples"], strict=False) if o > 0]
    if len(ratios) < 2:
        return {}
    first, _, third = statistics.quantiles(ratios, n=4, method="inclusive")
    value = base["quartiles"][0] / own["quartiles"][0]
    return {"value": value, "first": first, "third": third}


def _count(case: Case, task: str, row: Row, options: Options) -> None:
    """The work, counted from the problem, and the bar."""
    if case.work is not None:
        work = case.work(task)
        row |= {"flops": work.flops, "bytes": work.numbers * case.dtype.itemsize}
    bar = case.bars.get((task, row["contestant"], options.threads))
    if bar is not None:
        row["bar"] = bar


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
