"""Comparing runs: noise and a machine's drift are no regressions, a planted slow-down is one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from eqtp.benchmarks.__main__ import main
from eqtp.benchmarks.harness.compare import compare, moved
from eqtp.benchmarks.harness.record import read_record, write_record

CONTESTANTS = ("eqtp cpu", "eqtp torch", "e3nn", "other")
THRESHOLD = 1.25


def record(seed: int, *, slow: str = "", factor: float = 1.5, drift: float = 1.0) -> dict[str, Any]:
    """A run of 30 cases with 5 % noise; `slow` takes `factor` times as long in one of them."""
    noise = random.Random(seed)
    rows = []
    for case in range(30):
        for number, contestant in enumerate(CONTESTANTS):
            seconds = (
                0.01 * (number + 1) * drift * (factor if (contestant, case) == (slow, 7) else 1)
            )
            samples = sorted(seconds * noise.gauss(1, 0.05) for _ in range(12))
            median = (samples[5] + samples[6]) / 2
            times = {
                "median": median,
                "quartiles": [samples[3], samples[8]],
                "samples": samples,
            }
            rows.append(
                {
                    "family": "products",
                    "case": f"case {case}",
                    "task": "forward",
                    "dtype": "float32",
                    "device": "cpu",
                    "threads": 1,
                    "contestant": contestant,
                    "baseline": "e3nn",
                    "status": "measured",
                    "wall": times,
                }
            )
    rows.append({**rows[0], "contestant": "absent", "status": "absent"})
    return {"machine": {"commit": str(seed)}, "clock": "wall", "rows": rows}


def verdicts(a: dict[str, Any], b: dict[str, Any]) -> dict[Any, str]:
    changes = compare(a, b)
    return {
        (change.key[1], change.key[-1]): change.verdict(THRESHOLD)
        for change in changes
        if change.verdict(THRESHOLD)
    }


def test_two_runs_of_one_commit_agree() -> None:
    for seed in range(5):
        assert verdicts(record(seed), record(100 + seed)) == {}


def test_a_busier_machine_is_no_regression() -> None:
    assert verdicts(record(0), record(1, drift=1.8)) == {}


@pytest.mark.parametrize("slow", CONTESTANTS)
def test_planted_slow_down_is_found(slow: str) -> None:
    """Of any contestant, the baseline of the ratios included."""
    assert verdicts(record(0), record(1, slow=slow)) == {("case 7", slow): "slower"}
    assert verdicts(record(1, slow=slow), record(0)) == {("case 7", slow): "faster"}


def test_noise_widens_the_error() -> None:
    quiet, loud = record(0), record(1, slow="e3nn")
    for row in loud["rows"]:
        if row["status"] == "measured":
            median = row["wall"]["median"]
            row["wall"]["quartiles"] = [median * 0.4, median * 1.6]
    assert verdicts(quiet, loud) == {}


def test_scatter_from_run_to_run_is_no_regression() -> None:
    """What the quartiles of neither run show; a slow-down beyond it is found."""
    moods = random.Random(3)
    for scatter, slow, found in ((0.12, 1.0, 0), (0.04, 1.6, 1), (0.12, 3.0, 1)):
        b = record(1, slow="e3nn", factor=slow)
        for row in b["rows"]:
            if row["status"] == "measured":
                factor = moods.gauss(1, scatter)
                row["wall"]["quartiles"] = [factor * time for time in row["wall"]["quartiles"]]
        assert len(verdicts(record(0), b)) == found


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, None), (1.35, "slower"), (1.5, "slower"), (0.7, "faster")]
)
def test_a_slow_kernel_shows_in_all_its_rows_together(factor: float, verdict: str | None) -> None:
    """Where each row for itself is within the noise; and noise alone does not."""
    moods, b = random.Random(5), record(1)
    for row in b["rows"]:
        if row["status"] == "measured":
            own = moods.gauss(1, 0.12) * (factor if row["contestant"] == "other" else 1.0)
            row["wall"]["quartiles"] = [own * time for time in row["wall"]["quartiles"]]
    found = moved(compare(record(0), b), THRESHOLD)
    together = {change.key[-1]: one for one, change in found if change.key[2] == "all tasks"}
    assert together == ({} if verdict is None else {"other": verdict})
    assert len(found) - len(together) <= 5  # of 120


def test_nothing_in_common_is_an_error() -> None:
    other = record(1)
    for row in other["rows"]:
        row["threads"] = 2
    with pytest.raises(ValueError, match="in common"):
        compare(record(0), other)


def test_files_hold_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    for number in (0, 3):
        run = {**record(0), "rows": record(0)["rows"][:number], "failed": {"a": "b"}}
        write_record(path, run)
        assert read_record(path) == run
    assert sum('"contestant"' in line for line in path.read_text().splitlines()) == 3


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"rows": []}'])
def test_files_of_another_form_are_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json must be"):
        main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, run in (("a", record(0)), ("b", record(1, slow="eqtp cpu")), ("c", record(2))):
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    a, b, c = (str(tmp_path / f"{name}.json") for name in "abc")
    assert main(["compare", a, b]) == 1
    assert "slower   1.5" in capsys.readouterr().out.replace("1.4", "1.5")
    assert main(["compare", a, c]) == 0
    out = capsys.readouterr().out
    assert "120 rows in common, 120 unchanged" in out
    assert "ratios to the baseline: 99% of 90 within 10 %" in out
