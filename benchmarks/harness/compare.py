"""Two runs beside each other: which contestants became slower, beyond the noise of both runs.

The change of a contestant is its lower quartile of B over that of A, divided by the drift: the
median of the same over all contestants of the case (of the whole run where the case has fewer than
three), as a machine's mood meets them all. It counts where it exceeds the threshold and four times
its standard error. That has two parts: the error of both quartiles, from the quartiles within each
run, and the scatter from run to run, which no quartile shows (where memory lies, what else ran),
from the differences between contestants of a case in all of the comparison: most of them did not
change. A slow-down that hides in that noise row by row, or that is one part of a call, shows in all
rows of a contestant in a family together: their median change has an error that falls with the
square root of their number, and counts above the square root of the threshold.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqtp.benchmarks.harness.measure import Row, measured_by_key
from eqtp.benchmarks.harness.record import read_record

__all__ = ["Change", "add_arguments", "compare", "moved", "run"]

Key = tuple[Any, ...]
_MIN_ERROR = 0.03  # of the logarithm: what two quiet runs differ by
_ERRORS = 4.0  # one row of 16,000 exceeds them by chance; a full run has some thousand


@dataclass(frozen=True)
class Change:
    """How the time of one contestant changed.

    Attributes:
        key: Family, case, task, dtype, device, threads, contestant.
        factor: Time of B over A without the drift; above 1 is slower.
        error: Standard error of its logarithm.
        seconds: Lower quartiles of A and B.
        ratio: Its ratio to the baseline in B over that in A; None for the baseline.
    """

    key: Key
    factor: float
    error: float
    seconds: tuple[float, float]
    ratio: float | None

    def verdict(self, threshold: float) -> str:
        """Slower, faster, or nothing where the change is within the threshold or the noise."""
        change = math.log(self.factor)
        if abs(change) < max(math.log(threshold), _ERRORS * self.error):
            return ""
        return "slower" if change > 0 else "faster"


def compare(a: Mapping[str, Any], b: Mapping[str, Any], clock: str = "wall") -> list[Change]:
    """The changes from run A to run B of every row that both have measured.

    Raises:
        ValueError: The runs have no row in common.
    """
    before, after = measured_by_key(a["rows"]), measured_by_key(b["rows"])
    keys = [key for key in before if key in after]
    if not keys:
        raise ValueError("the two runs must have measured rows in common, got none")
    factors = {key: _time(after[key], clock) / _time(before[key], clock) for key in keys}
    overall = statistics.median(factors.values())
    cases: dict[Key, list[float]] = {}
    for key, factor in factors.items():
        cases.setdefault(key[:-1], []).append(factor)
    changes = {}
    for key, factor in factors.items():
        others = cases[key[:-1]]
        changes[key] = factor / (statistics.median(others) if len(others) > 2 else overall)
    scatter = _scatter(cases.values())
    return [
        Change(
            key,
            change,
            max(
                math.hypot(scatter, *(_error(rows[key][clock]) for rows in (before, after))),
                _MIN_ERROR,
            ),
            (_time(before[key], clock), _time(after[key], clock)),
            _ratio_change(key, before[key], factors),
        )
        for key, change in changes.items()
    ]


def pooled(changes: Sequence[Change]) -> list[Change]:
    """The median change of each contestant over the cases and tasks of a family, three at least."""
    groups: dict[Key, list[Change]] = {}
    for change in changes:
        family, _, _, *where = change.key
        groups.setdefault((family, *where), []).append(change)
    return [
        Change(
            (family, f"{len(of)} rows together", "all tasks", *where),
            statistics.median(change.factor for change in of),
            max(1.25 * statistics.median(c.error for c in of) / math.sqrt(len(of)), _MIN_ERROR),
            (sum(change.seconds[0] for change in of), sum(change.seconds[1] for change in of)),
            None,
        )
        for (family, *where), of in groups.items()
        if len(of) > 2
    ]


def _scatter(cases: Iterable[Sequence[float]]) -> float:
    """Sigma of the logarithm of a factor, from the differences between those of a case.

    Their lower quartile, not their median: one slow contestant of four is in half of the pairs.
    """
    differences = [
        abs(math.log(one / other))
        for case in cases
        for one, other in itertools.combinations(case, 2)
    ]
    if len(differences) < 2:
        return 0.0
    normal = math.sqrt(2) * 0.3186  # lower quartile of the size of a difference, for sigma = 1
    return statistics.quantiles(differences, n=4)[0] / normal


def _time(row: Row, clock: str) -> float:
    """The lower quartile of the samples."""
    return float(row[clock]["quartiles"][0])


def _ratio_change(key: Key, row: Row, factors: Mapping[Key, float]) -> float | None:
    baseline = (*key[:-1], row["baseline"])
    if key == baseline or baseline not in factors:
        return None
    return factors[baseline] / factors[key]


def _error(times: Mapping[str, Any]) -> float:
    """Standard error of a quartile, relative: 1.36 sigma / sqrt(n), sigma = IQR / 1.35."""
    low, high = times["quartiles"]
    spread = (high - low) / 1.35 / low
    return float(1.36 * spread / math.sqrt(len(times["samples"])))


def moved(changes: Sequence[Change], threshold: float) -> list[tuple[str, Change]]:
    """What became slower or faster, with the verdict: contestants in a family, then rows."""
    judged = [(change.verdict(math.sqrt(threshold)), change) for change in pooled(changes)]
    judged += [(change.verdict(threshold), change) for change in changes]
    return [(verdict, change) for verdict, change in judged if verdict]


def table(changes: Sequence[Change], threshold: float) -> str:
    """Slower and faster rows with their uncertainty, and how many stayed."""
    lines = []
    found = sorted(moved(changes, threshold), key=lambda one: -abs(math.log(one[1].factor)))
    for wanted in ("slower", "faster"):
        for verdict, change in found:
            if verdict == wanted:
                family, case, task, dtype, _, threads, contestant = change.key
                error = change.factor * change.error
                lines.append(
                    f"{verdict} {change.factor:6.2f} ± {error:.2f}   {contestant:24}"
                    f"{1e3 * change.seconds[0]:10.3g} -> {1e3 * change.seconds[1]:10.3g} ms   "
                    f"{family} | {case} | {task} | {dtype}, {threads} thread(s)"
                )
    unchanged = sum(not change.verdict(threshold) for change in changes)
    lines.append(f"{len(changes)} rows in common, {unchanged} unchanged")
    ratios = [change.ratio for change in changes if change.ratio is not None]
    if ratios:
        within = sum(abs(math.log(ratio)) < math.log(1.1) for ratio in ratios)
        lines.append(
            f"ratios to the baseline: {within / len(ratios):.0%} of {len(ratios)} within 10 %"
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
    return int(any(verdict == "slower" for verdict, _ in moved(changes, args.threshold)))
