"""Two runs beside each other: which contestants became slower, beyond the noise of both runs.

The change of a contestant is its median of B over that of A, divided by the drift: the median of
the same over all contestants of the case (of the whole run where the case has fewer than three), as
a machine's mood meets them all. It counts where it exceeds the threshold and three times its
standard error, estimated from the quartiles of both runs.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqtp.benchmarks.harness.measure import Row
from eqtp.benchmarks.harness.record import read_record

__all__ = ["Change", "add_arguments", "compare", "run"]

Key = tuple[Any, ...]
_KEY = ("family", "case", "task", "dtype", "device", "threads", "contestant")
_MIN_ERROR = 0.03  # of the logarithm: what two quiet runs differ by


@dataclass(frozen=True)
class Change:
    """How the time of one contestant changed.

    Attributes:
        key: Family, case, task, dtype, device, threads, contestant.
        factor: Time of B over A without the drift; above 1 is slower.
        error: Standard error of its logarithm.
        seconds: Medians of A and B.
    """

    key: Key
    factor: float
    error: float
    seconds: tuple[float, float]

    def verdict(self, threshold: float) -> str:
        """Slower, faster, or nothing where the change is within the threshold or the noise."""
        change = math.log(self.factor)
        if abs(change) < max(math.log(threshold), 3 * self.error):
            return ""
        return "slower" if change > 0 else "faster"


def compare(a: Mapping[str, Any], b: Mapping[str, Any], clock: str = "wall") -> list[Change]:
    """The changes from run A to run B of every row that both have measured.

    Raises:
        ValueError: The runs have no row in common.
    """
    before, after = _rows(a), _rows(b)
    keys = [key for key in before if key in after]
    if not keys:
        raise ValueError("the two runs must have measured rows in common, got none")
    factors = {key: after[key][clock]["median"] / before[key][clock]["median"] for key in keys}
    overall = statistics.median(factors.values())
    cases: dict[Key, list[float]] = {}
    for key, factor in factors.items():
        cases.setdefault(key[:-1], []).append(factor)
    changes = []
    for key, factor in factors.items():
        others = cases[key[:-1]]
        drift = statistics.median(others) if len(others) > 2 else overall
        error = math.hypot(*(_error(rows[key][clock]) for rows in (before, after)))
        seconds = (before[key][clock]["median"], after[key][clock]["median"])
        changes.append(Change(key, factor / drift, max(error, _MIN_ERROR), seconds))
    return changes


def _rows(record: Mapping[str, Any]) -> dict[Key, Row]:
    return {
        tuple(row[name] for name in _KEY): row
        for row in record["rows"]
        if row["status"] == "measured"
    }


def _error(times: Mapping[str, Any]) -> float:
    """Standard error of the median, relative: 1.25 sigma / sqrt(n), sigma = IQR / 1.35."""
    low, high = times["quartiles"]
    spread = (high - low) / 1.35 / times["median"]
    return float(1.25 * spread / math.sqrt(len(times["samples"])))


def table(changes: Sequence[Change], threshold: float) -> str:
    """Slower and faster rows with their uncertainty, and how many stayed."""
    lines = []
    by_size = sorted(changes, key=lambda change: -abs(math.log(change.factor)))
    for verdict in ("slower", "faster"):
        for change in by_size:
            if change.verdict(threshold) == verdict:
                family, case, task, dtype, _, threads, contestant = change.key
                error = change.factor * change.error
                lines.append(
                    f"{verdict} {change.factor:6.2f} ± {error:.2f}   {contestant:24}"
                    f"{1e3 * change.seconds[0]:10.3g} -> {1e3 * change.seconds[1]:10.3g} ms   "
                    f"{family} | {case} | {task} | {dtype}, {threads} thread(s)"
                )
    moved = sum(bool(change.verdict(threshold)) for change in changes)
    within = sum(abs(math.log(change.factor)) < math.log(1.1) for change in changes)
    lines.append(
        f"{len(changes)} rows in common, {len(changes) - moved} unchanged; "
        f"{within / len(changes):.0%} within 10 %"
    )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench compare`."""
    parser.add_argument("a", type=Path, help="JSON file of the earlier run")
    parser.add_argument("b", type=Path, help="JSON file of the later run")
    parser.add_argument("--threshold", type=float, default=1.25, help="factor that counts")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])


def run(args: argparse.Namespace) -> int:
    """Prints the changes; returns 1 where something became slower."""
    a, b = read_record(args.a), read_record(args.b)
    changes = compare(a, b, args.clock)
    print(f"{args.a} ({a['machine']['commit']}) -> {args.b} ({b['machine']['commit']})")
    print(table(changes, args.threshold))
    return int(any(change.verdict(args.threshold) == "slower" for change in changes))
