"""The rows of a run as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from eqtp.benchmarks.harness.measure import Row

__all__ = ["summary", "table", "title"]

_HEADER = (
    f"  {'':28}{'median [quartiles], ms':>28}{'ratio [quartiles]':>22}{'error':>9}"
    f"{'roofline':>9}{'peak, MB':>9}{'ns/output':>10}{'us/dim':>9}{'setup, s':>9}"
)


def table(rows: Iterable[Row], clock: str = "wall") -> str:
    """A block per case and task: measured contestants, then refused and absent ones."""
    lines: list[str] = []
    for _, group in groupby(rows, key=lambda row: (row["case"], row["task"])):
        block = list(group)
        lines += ["", title(block[0], clock), _HEADER]
        lines += [_line(row, clock) for row in block if row["status"] == "measured"]
        others = [row for row in block if row["status"] != "measured"]
        lines += [f"  {row['contestant']:28}{row['status']}: {row['reason']}" for row in others]
    return "\n".join(lines)


def title(row: Row, clock: str) -> str:
    """What a block is about."""
    sizes = ", ".join(f"{key} {value}" for key, value in row["sizes"].items())
    return (
        f"{row['family']} | {row['case']} | {row['task']} | {row['dtype']} | {row['device']}, "
        f"{row['threads']} thread(s), {clock} clock | {sizes}"
    )


def _line(row: Row, clock: str) -> str:
    times, ratio = row[clock], row.get("ratio", {}).get(clock, {})
    low, high = times["quartiles"]
    cells = [
        f"{1e3 * times['median']:.3g} [{1e3 * low:.3g}, {1e3 * high:.3g}]".rjust(28),
        (
            f"{ratio['value']:.2f} [{ratio['first']:.2f}, {ratio['third']:.2f}]" if ratio else "-"
        ).rjust(22),
        f"{row['error']:9.0e}",
        _cell(row.get("roofline"), "{:.0%}"),
        _cell(_scaled(row.get("peak_bytes"), 1e-6), "{:.3g}"),
        _cell(_scaled(row.get("seconds_per_output"), 1e9), "{:.3g}", 10),
        _cell(_scaled(row.get("seconds_per_dimension"), 1e6), "{:.3g}"),
        _cell(row.get("setup_seconds"), "{:.2g}"),
    ]
    bar = row.get("bar")
    verdict = ""
    if bar is not None and ratio:
        verdict = f"  bar {bar:g}: {'reached' if ratio['value'] >= bar else 'MISSED'}"
    return f"  {row['contestant']:28}{''.join(cells)}{verdict}"


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _cell(value: float | None, form: str, width: int = 9) -> str:
    return ("-" if value is None else form.format(value)).rjust(width)


def summary(record: dict[str, Any]) -> str:
    """What was measured, refused and absent, what each family took, and what failed."""
    rows: Sequence[Row] = record["rows"]
    counts = Counter(row["status"] for row in rows)
    lines = [
        "",
        f"{counts['measured']} measured, {counts['refused']} refused, {counts['absent']} absent "
        f"in {record.get('seconds', 0):.0f} s",
    ]
    for run, costs in record.get("costs", {}).items():
        wall, compilers = (sum(cost[of] for cost in costs.values()) for of in ("wall", "compilers"))
        lines.append(f"  {wall:6.0f} s {run}, of which {compilers:.0f} s in compilers")
    refused = Counter(
        (row["contestant"], row["task"], row["reason"])
        for row in rows
        if row["status"] == "refused"
    )
    lines += [f"  refused {n} x {who}, {task}: {why}" for (who, task, why), n in refused.items()]
    absent = Counter(
        (row["contestant"], row["reason"]) for row in rows if row["status"] == "absent"
    )
    lines += [f"  absent {n} x {who}: {why}" for (who, why), n in absent.items()]
    lines += [f"  FAILED {what}: {why}" for what, why in record["failed"].items()]
    return "\n".join(lines)
