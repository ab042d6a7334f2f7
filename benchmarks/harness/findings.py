"""`eqtp bench findings SUITE.json`: the questions of "The Price of Freedom", answered from a run.

Xie et al., arXiv:2506.13523, compare dense and sparse Clebsch-Gordan products, products on a grid
and by Fourier series, products of matrices, and (in its successor arXiv:2602.21466) vector products
for the odd paths, over L, in the settings of `eqtp.benchmarks.products`. Here are the same tables
from the rows of a run, and each of their statements with what was measured, in Markdown.

An operation is as fast as the fastest of its contestants. Who is within the quartiles of the
fastest is named with it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from eqtp.benchmarks.harness.measure import Row
from eqtp.benchmarks.harness.record import read_record

__all__ = ["OPERATIONS", "Slice", "add_arguments", "findings", "run"]

OPERATIONS = {
    "CG sparse": ("eqtp cg", "eqtp cg torch"),
    "CG dense": ("eqtp cg dense", "e3nn"),
    "grid": ("eqtp gaunt grid",),
    "Fourier": ("eqtp gaunt fourier",),
    "matrix": ("eqtp matrix",),
    "grid + curl": ("eqtp gaunt_full grid",),
}
"""The paper's operations, and the contestants that compute them."""

CLEBSCH_GORDAN = ("CG sparse", "CG dense")
SETTINGS = ("SISO", "SIMO", "MIMO natural", "MIMO all")
TASKS = ("forward", "backward", "double backward")


class Slice:
    """The rows of one device, dtype, number of threads and task, by setting, operation and L.

    Args:
        rows: Measured rows of the family `products` with one channel.
        clock: "wall" or "cpu".
    """

    def __init__(self, rows: Iterable[Row], clock: str = "wall") -> None:
        self.clock = clock
        self._rows: dict[tuple[str, str, int], Row] = {}
        operation_of = {who: name for name, whose in OPERATIONS.items() for who in whose}
        for row in rows:
            operation, sizes = operation_of.get(row["contestant"]), row["sizes"]
            if operation is None or sizes["setting"] not in SETTINGS:
                continue
            key = sizes["setting"], operation, int(sizes["L"])
            if key not in self._rows or self._median(row) < self._median(self._rows[key]):
                self._rows[key] = row

    def _median(self, row: Row) -> float:
        return float(row[self.clock]["median"])

    def degrees(self, setting: str) -> list[int]:
        """L that were measured in a setting."""
        return sorted({degree for which, _, degree in self._rows if which == setting})

    def operations(self, setting: str) -> list[str]:
        """Operations that were measured in a setting."""
        found = {operation for which, operation, _ in self._rows if which == setting}
        return [operation for operation in OPERATIONS if operation in found]

    def seconds(self, setting: str, operation: str, degree: int) -> float | None:
        """Time per row; None where there is none."""
        row = self._rows.get((setting, operation, degree))
        return None if row is None else self._median(row) / int(row["rows"])

    def per_dimension(self, setting: str, operation: str, degree: int) -> float | None:
        """Time per row and dimension of the bilinear maps."""
        seconds = self.seconds(setting, operation, degree)
        dimension = self._rows.get((setting, operation, degree), {}).get("expressivity")
        return None if seconds is None or not dimension else seconds / float(dimension)

    def fastest(self, setting: str, degree: int) -> tuple[str, ...]:
        """The fastest operation, and those whose quartiles reach its own."""
        here = {
            operation: row
            for (which, operation, at), row in self._rows.items()
            if (which, at) == (setting, degree)
        }
        best = min(here, key=lambda operation: self._median(here[operation]))
        limit = here[best][self.clock]["quartiles"][1]
        tied = [
            operation
            for operation in OPERATIONS
            if operation in here
            and operation != best
            and here[operation][self.clock]["quartiles"][0] <= limit
        ]
        return best, *tied

    def ratios(
        self, setting: str, slow: Sequence[str], fast: Sequence[str], *, per_dimension: bool = False
    ) -> dict[int, float]:
        """The least time of some operations over that of others, by L, where both are."""
        of = self.per_dimension if per_dimension else self.seconds
        found = {}
        for degree in self.degrees(setting):
            above, below = (
                [t for name in names if (t := of(setting, name, degree)) is not None]
                for names in (slow, fast)
            )
            if above and below:
                found[degree] = min(above) / min(below)
        return found


def findings(record: Mapping[str, Any]) -> str:
    """The tables and statements as Markdown, for every device, dtype and number of threads.

    Raises:
        ValueError: The run has no measured rows of the family `products`.
    """
    rows = [
        row
        for row in record["rows"]
        if row["family"] == "products"
        and row["status"] == "measured"
        and row["sizes"].get("channels") == 1
    ]
    if not rows:
        raise ValueError(
            "findings are drawn from the family 'products', and this run measured none of it: "
            "run `eqtp bench products` or `eqtp bench all`"
        )
    machine, clock = record["machine"], record["clock"]
    parts = []
    for (device, dtype, threads), group in groupby(sorted(rows, key=_where), key=_where):
        some = list(group)
        name = machine["cpu"] if device == "cpu" else machine["device"]
        by_task = {
            task: Slice([row for row in some if row["task"] == task], clock) for task in TASKS
        }
        parts.append(
            f"### {name}, {dtype}, {threads} thread(s)\n\ncommit {machine['commit']}, "
            f"{machine['time']}, {clock} clock\n\n"
            + statements(by_task["forward"], on_gpu=device != "cpu")
            + "\n\n"
            + _winners(by_task)
            + "\n\n"
            + _times(by_task["forward"])
        )
    return "\n\n".join(parts)


def _where(row: Row) -> tuple[str, str, int]:
    return row["device"], row["dtype"], row["threads"]


def statements(measured: Slice, *, on_gpu: bool) -> str:
    """A line for each statement of the paper: what it says and what was measured."""
    lines = ["| setting | their finding | here |", "|---|---|---|"]
    others = [operation for operation in OPERATIONS if operation not in CLEBSCH_GORDAN]
    for setting in ("SISO", "SIMO"):
        lead = measured.ratios(setting, others, CLEBSCH_GORDAN)
        lines.append(f"| {setting} | CG wins at every L | {_always(lead, 'CG')} |")
    for setting in ("MIMO natural", "MIMO all"):
        against = {
            name: measured.ratios(setting, names, ("grid",))
            for name, names in (("CG dense", ("CG dense",)), ("all CG", CLEBSCH_GORDAN))
        }
        text = "; ".join(f"{name}: {_overtakes(lead)}" for name, lead in against.items())
        lines.append(f"| {setting} | the grid overtakes CG from L = 2 on | {text} |")
    rest = [operation for operation in OPERATIONS if operation != "Fourier"]
    spans = [
        f"{setting}: {_span(measured.ratios(setting, ('Fourier',), rest))}" for setting in SETTINGS
    ]
    lines.append(f"| Fourier | never competitive | times the fastest: {'; '.join(spans)} |")
    slower = {
        name: _span(measured.ratios("MIMO natural", ("matrix",), names))
        for name, names in (("CG", CLEBSCH_GORDAN), ("the grid", ("grid",)))
    }
    theirs = "between CG and the grid" if on_gpu else "slower than CG"
    lines.append(
        f"| matrix | {theirs} on a {'GPU' if on_gpu else 'CPU'} | "
        f"{'; '.join(f'times {name}: {span}' for name, span in slower.items())} |"
    )
    curl = _span(measured.ratios("MIMO all", ("grid + curl",), ("grid",)))
    lines.append(f"| curl (odd paths) | 2 to 4 times the grid | times the grid: {curl} |")
    per_row, per_dimension = (
        _overtakes(measured.ratios("MIMO all", CLEBSCH_GORDAN, ("grid",), per_dimension=flag))
        for flag in (False, True)
    )
    lines.append(
        "| per dimension of expressivity | the grid's speed comes at the cost of expressivity | "
        f"per row the grid is {per_row}; per dimension {per_dimension} |"
    )
    return "\n".join(lines)


def _always(lead: Mapping[int, float], name: str) -> str:
    """Whether a lead is above 1 at every L, and where it is not."""
    if not lead:
        return "not measured"
    lost = [degree for degree, factor in lead.items() if factor <= 1]
    text = f"{name} is {_span(lead)} times as fast as the best of the others"
    return f"refuted at L = {degrees_in_words(lost)}: {text}" if lost else f"reproduced: {text}"


def _overtakes(lead: Mapping[int, float]) -> str:
    """From which L on a lead stays above 1."""
    if not lead:
        return "not measured"
    ahead = [
        degree
        for degree in sorted(lead)
        if all(factor > 1 for at, factor in lead.items() if at >= degree)
    ]
    last = max(lead)
    if not ahead:
        return f"not faster up to L = {last} ({_factor(lead[last])} times as fast there)"
    return f"faster from L = {ahead[0]} on ({_factor(lead[last])} times at L = {last})"


def _span(factors: Mapping[int, float]) -> str:
    """From the least to the largest of some factors, with their L.

    Example:
        >>> _span({1: 2.0, 2: 1.5, 3: 12.3})
        '1.50 (L = 2) to 12.3 (L = 3)'
    """
    if not factors:
        return "not measured"
    low, high = (choose(factors, key=factors.__getitem__) for choose in (min, max))
    least, most = _factor(factors[low]), _factor(factors[high])
    if least == most:
        return f"{least} (L = {degrees_in_words(factors)})"
    return f"{least} (L = {low}) to {most} (L = {high})"


def _factor(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def degrees_in_words(degrees: Iterable[int]) -> str:
    """Runs of L in short.

    Example:
        >>> degrees_in_words([1, 2, 3, 5, 7, 8])
        '1-3, 5, 7-8'
    """
    found = sorted(degrees)
    runs = groupby(enumerate(found), key=lambda pair: pair[1] - pair[0])
    texts = []
    for _, members in runs:
        run = [degree for _, degree in members]
        texts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(texts)


def _winners(by_task: Mapping[str, Slice]) -> str:
    """The fastest operation of each setting and task by L, and per dimension."""
    lines = ["| fastest | task | by L |", "|---|---|---|"]
    for setting in SETTINGS:
        for task, measured in by_task.items():
            fastest = {
                degree: " or ".join(measured.fastest(setting, degree))
                for degree in measured.degrees(setting)
            }
            if fastest:
                lines.append(f"| {setting} | {task} | {_by_degree(fastest)} |")
    for setting in ("MIMO natural", "MIMO all"):
        measured = by_task["forward"]
        cheapest = {}
        for degree in measured.degrees(setting):
            costs = {
                name: cost
                for name in measured.operations(setting)
                if (cost := measured.per_dimension(setting, name, degree)) is not None
            }
            if costs:
                cheapest[degree] = min(costs, key=costs.__getitem__)
        if cheapest:
            lines.append(f"| {setting}, per dimension | forward | {_by_degree(cheapest)} |")
    return "\n".join(lines)


def _by_degree(names: Mapping[int, str]) -> str:
    return "; ".join(
        f"L = {degrees_in_words(degree for degree, _ in members)}: {name}"
        for name, members in (
            (name, list(group)) for name, group in groupby(names.items(), key=lambda item: item[1])
        )
    )


def _times(measured: Slice) -> str:
    """Forward times per row, and per dimension of the bilinear maps where that was counted."""
    tables = []
    for setting in SETTINGS:
        degrees = measured.degrees(setting)
        for what, of in (
            ("ns per row", measured.seconds),
            ("ns per row and dimension", measured.per_dimension),
        ):
            lines = []
            for name in measured.operations(setting):
                values = [of(setting, name, degree) for degree in degrees]
                if any(value is not None for value in values):
                    cells = ["-" if v is None else _three_digits(1e9 * v) for v in values]
                    lines.append(f"| {name} | {' | '.join(cells)} |")
            if lines:
                heads = " | ".join(str(degree) for degree in degrees)
                rule = "---|" * (len(degrees) + 1)
                tables.append(
                    "\n".join([f"| {setting}, {what}, L = | {heads} |", f"|{rule}", *lines])
                )
    return "\n\n".join(tables)


def _three_digits(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench findings`."""
    parser.add_argument("record", type=Path, help="JSON file of a run that holds `products`")


def run(args: argparse.Namespace) -> int:
    """Prints the findings of a run."""
    print(findings(read_record(args.record)))
    return 0
