"""Which rows go into which chart of the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from eqtp.benchmarks.harness.charts import Bar, Series, bar_chart, plane
from eqtp.benchmarks.harness.measure import Row

__all__ = [
    "Figure",
    "colours",
    "crossovers",
    "expressivity_plots",
    "family_plots",
    "overview_plots",
    "plots_over_x",
    "speed_up_plots",
]

MAX_BARS = 80
Ceilings = Mapping[str, Mapping[str, Any]]
"""Measured rates by number of threads, as in the record."""


@dataclass(frozen=True)
class Figure:
    """A chart as SVG with its title and what is to be said below it."""

    title: str
    chart: str
    notes: Sequence[str] = ()


def colours(rows: Iterable[Row]) -> dict[str, int]:
    """A colour for every contestant, the same in all charts; eqtp's first."""
    names = sorted({r["contestant"] for r in rows}, key=lambda n: (not n.startswith("eqtp"), n))
    return {name: number for number, name in enumerate(names)}


def family_plots(
    rows: Sequence[Row], ceilings: Ceilings, clock: str, colour: Mapping[str, int]
) -> list[Figure]:
    """Time over L or channels, speed-up bars of other cases, expressivity, the roofline."""
    drawn = {row["group"] for row in rows if _is_line(row["group"], rows)}
    return [
        *plots_over_x([row for row in rows if row["group"] in drawn], clock, colour),
        *speed_up_plots([row for row in rows if row["group"] not in drawn], clock, colour),
        *expressivity_plots(rows, clock, colour),
        *_rooflines([row for row in rows if row["task"] == "forward"], ceilings, clock, colour),
    ]


def overview_plots(
    rows: Sequence[Row], ceilings: Ceilings, clock: str, colour: Mapping[str, int]
) -> list[Figure]:
    """The roofline of the fastest of every case, and error beside time, of forward passes."""
    forward = [row for row in rows if row["task"] == "forward"]
    best: dict[tuple[Any, ...], Row] = {}
    for row in forward:
        key = tuple(row[name] for name in ("family", "case", "dtype", "threads"))
        if key not in best or row[clock]["median"] < best[key][clock]["median"]:
            best[key] = row
    figures = _rooflines(list(best.values()), ceilings, clock, colour, "the fastest of each case")
    series = _series(
        forward,
        colour,
        lambda row: 1e9 * row[clock]["median"] / row["outputs"],
        lambda row: max(row["error"], 1e-17),
    )
    if series:
        chart = plane(series, "time per output number, ns", "relative error")
        figures.append(Figure("Error beside time, forward", chart))
    return figures


def _is_line(group: str, rows: Iterable[Row]) -> bool:
    """Whether the cases of a group are of more than one x."""
    sizes = {row["sizes"].get(row["x"]) for row in rows if row["group"] == group}
    return group != "" and len(sizes) > 1


def _series(
    rows: Iterable[Row], colour: Mapping[str, int], x: Any, y: Any, *, joined: bool = False
) -> list[Series]:
    found: dict[str, Series] = {}
    for row in rows:
        name = row["contestant"]
        one = found.setdefault(name, Series(name, colour[name], joined=joined))
        one.points.append((x(row), y(row), f"{name}: {row['case']}, {row['task']}"))
    return [found[name] for name in sorted(found, key=lambda name: colour[name])]


def plots_over_x(rows: Sequence[Row], clock: str, colour: Mapping[str, int]) -> list[Figure]:
    """Time per row over L or channels, one for each group of cases, task, threads and dtype."""
    figures = []
    keys = dict.fromkeys((r["group"], r["task"], r["threads"], r["dtype"]) for r in rows)
    for group, task, threads, dtype in keys:
        some = [
            r
            for r in rows
            if (r["group"], r["task"], r["threads"], r["dtype"]) == (group, task, threads, dtype)
        ]
        x = some[0]["x"]
        some.sort(key=lambda row: float(row["sizes"][x]))
        series = _series(
            some,
            colour,
            lambda row, x=x: float(row["sizes"][x]),
            lambda row: 1e9 * row[clock]["median"] / row["rows"],
            joined=True,
        )
        chart = plane(series, x, "time per row, ns", x_log=x == "channels")
        title = f"{group}: {task}, {dtype}, {threads} thread(s)"
        notes = crossovers(series, x)
        figures.append(Figure(title, chart, notes))
    return figures


def crossovers(series: Sequence[Series], x: str) -> list[str]:
    """Who is the fastest, and from which x on another one is.

    Example:
        >>> slow = Series("slow", 0, [(1, 2.0, ""), (2, 2.0, "")])
        >>> steep = Series("steep", 1, [(1, 1.0, ""), (2, 4.0, "")])
        >>> crossovers([slow, steep], "L")
        ['fastest: steep at L = 1, slow from L = 2']
    """
    fastest: dict[float, tuple[float, str]] = {}
    for one in series:
        for place, seconds, _ in one.points:
            fastest[place] = min(fastest.get(place, (float("inf"), "")), (seconds, one.name))
    winners = [(place, fastest[place][1]) for place in sorted(fastest)]
    if not winners:
        return []
    texts = [f"{winners[0][1]} at {x} = {winners[0][0]:g}"]
    for (_, before), (place, after) in pairwise(winners):
        if before != after:
            texts.append(f"{after} from {x} = {place:g}")
    if len(texts) == 1:
        return [f"fastest: {winners[0][1]} everywhere"]
    return ["fastest: " + ", ".join(texts)]


def speed_up_plots(rows: Sequence[Row], clock: str, colour: Mapping[str, int]) -> list[Figure]:
    """Bars of the ratios to the baseline, one for each task, number of threads and dtype."""
    figures = []
    for task, threads, dtype in dict.fromkeys((r["task"], r["threads"], r["dtype"]) for r in rows):
        bars = []
        baselines = set()
        for row in rows:
            ratio = row.get("ratio", {}).get(clock)
            same = (row["task"], row["threads"], row["dtype"]) == (task, threads, dtype)
            if not same or not ratio or row["contestant"] == row["baseline"]:
                continue
            baselines.add(row["baseline"])
            name = row["contestant"]
            numbers = ratio["value"], ratio["first"], ratio["third"]
            bars.append(Bar(row["case"], name, colour[name], *numbers))
        if bars:
            chart = bar_chart(bars[:MAX_BARS], f"times as fast as {', '.join(sorted(baselines))}")
            rest = len(bars) - MAX_BARS
            notes = [f"{rest} more rows are in the table below"] if rest > 0 else []
            title = f"Speed-up, {task}, {dtype}, {threads} thread(s)"
            figures.append(Figure(title, chart, notes))
    return figures


def expressivity_plots(rows: Sequence[Row], clock: str, colour: Mapping[str, int]) -> list[Figure]:
    """The dimension that the weights reach beside the time of a forward pass, for each group."""
    figures = []
    some = [row for row in rows if row.get("expressivity") and row["task"] == "forward"]
    for setting, threads, dtype in dict.fromkeys(
        (r["group"], r["threads"], r["dtype"]) for r in some
    ):
        here = [
            r for r in some if (r["group"], r["threads"], r["dtype"]) == (setting, threads, dtype)
        ]
        if len({row["expressivity"] for row in here}) > 1:
            series = _series(
                here,
                colour,
                lambda row: 1e9 * row[clock]["median"] / row["rows"],
                lambda row: float(row["expressivity"]),
                joined=True,
            )
            chart = plane(series, "time per row, ns", "dimension of the bilinear maps")
            title = f"Expressivity and time, {setting}: {dtype}, {threads} thread(s)"
            figures.append(Figure(title, chart, ["each point is a degree L, from left to right"]))
    return figures


def _rooflines(
    rows: Sequence[Row],
    ceilings: Ceilings,
    clock: str,
    colour: Mapping[str, int],
    whose: str = "forward",
) -> list[Figure]:
    """One for each dtype and number of threads; rows without counted arithmetic have no place."""
    figures = []
    counted = [row for row in rows if row.get("flops") and row.get("bytes")]
    for dtype, threads in dict.fromkeys((row["dtype"], row["threads"]) for row in counted):
        limits = ceilings.get(str(threads))
        if limits is None:
            continue
        peak, bandwidth = limits["flops_per_second"][dtype], limits["bytes_per_second"]
        series = _series(
            [row for row in counted if (row["dtype"], row["threads"]) == (dtype, threads)],
            colour,
            lambda row: row["flops"] / row["bytes"],
            lambda row: row["flops"] / row[clock]["median"] / 1e9,
        )
        chart = plane(
            series,
            "counted flops per byte that must be moved",
            "counted GFLOP per second",
            ceiling=partial(_ceiling, peak, bandwidth),
        )
        note = f"ceiling: {bandwidth / 1e9:.1f} GB/s and {peak / 1e9:.0f} GFLOP/s, {limits['how']}"
        title = f"Roofline, {whose}, {dtype}, {threads} thread(s)"
        figures.append(Figure(title, chart, [note]))
    return figures


def _ceiling(peak: float, bandwidth: float, flops_per_byte: float) -> float:
    """Most GFLOP per second."""
    return min(peak, flops_per_byte * bandwidth) / 1e9
