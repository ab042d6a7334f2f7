"""The findings: each statement follows the numbers, in either direction."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eqtp.benchmarks.__main__ import main
from eqtp.benchmarks.harness.family import Choice
from eqtp.benchmarks.harness.findings import OPERATIONS, Slice, findings
from eqtp.benchmarks.products import SETTINGS, cases

DEGREES = (1, 2, 3, 4)
Times = Callable[[str, str, int], float]
"""(setting, contestant, L) -> seconds of 100 rows."""


def paper(setting: str, contestant: str, degree: int) -> float:
    """Times that say what the paper says: the grid wins from L = 2 on in MIMO alone."""
    cg = 1e-3 * math.pow(degree, 3 if "MIMO" in setting else 0.5)
    grid = 2e-3 * degree
    return {
        "eqtp cg": cg,
        "eqtp cg torch": 1.4 * cg,
        "eqtp cg dense": 1.2 * cg,
        "e3nn": 1.3 * cg,
        "eqtp gaunt grid": grid,
        "eqtp gaunt fourier": 10 * grid,
        "eqtp matrix": (2 if "MIMO" in setting else 8) * cg,
        "eqtp gaunt_full grid": 3 * grid,
    }[contestant]


def record(times: Times, **changes: Any) -> dict[str, Any]:
    rows = []
    for setting in SETTINGS:
        for degree in DEGREES:
            for whose in OPERATIONS.values():
                for contestant in whose:
                    seconds = times(setting, contestant, degree)
                    clock = {"median": seconds, "quartiles": [0.95 * seconds, 1.05 * seconds]}
                    rows.append(
                        {
                            "family": "products",
                            "task": "forward",
                            "contestant": contestant,
                            "status": "measured",
                            "device": "cpu",
                            "dtype": "float32",
                            "threads": 1,
                            "rows": 100,
                            "sizes": {"setting": setting, "L": degree, "channels": 1},
                            "wall": clock,
                            "expressivity": degree**3 if "cg" in contestant else 4 * degree + 1,
                            **changes,
                        }
                    )
    machine = {"cpu": "CPU", "device": "GPU", "commit": "abc", "time": "now"}
    return {"machine": machine, "clock": "wall", "rows": rows}


def line(text: str, start: str) -> str:
    return next(found for found in text.splitlines() if found.startswith(f"| {start} |"))


def test_what_the_paper_says_is_reproduced() -> None:
    text = findings(record(paper))
    assert "### CPU, float32, 1 thread(s)" in text
    for setting in ("SISO", "SIMO"):
        assert "reproduced: CG is 2.00 (L = 1) to 4.00 (L = 4) times" in line(text, setting)
    grid = line(text, "MIMO natural")
    assert "CG dense: faster from L = 2 on (9.60 times at L = 4)" in grid
    assert "all CG: faster from L = 2 on (8.00 times at L = 4)" in grid
    assert "SISO: 20 (L = 1) to 40 (L = 4)" in line(text, "Fourier")
    assert (
        "slower than CG on a CPU | times CG: 2.00 (L = 1-4); times the grid: 1.00 (L = 1)"
        in line(text, "matrix")
    )
    assert "times the grid: 3.00 (L = 1-4)" in line(text, "curl (odd paths)")
    assert (
        "per row the grid is faster from L = 2 on (8.00 times at L = 4); per dimension faster from "
        "L = 1 on (2.12 times at L = 4)"
    ) in line(text, "per dimension of expressivity")


def test_what_is_refuted_says_so() -> None:
    def contrary(setting: str, contestant: str, degree: int) -> float:
        if setting == "SISO" and contestant == "eqtp matrix" and degree in (2, 3):
            return 1e-6
        if "MIMO" in setting and "cg" in contestant:
            return 1e-6
        return paper(setting, contestant, degree)

    text = findings(record(contrary))
    assert "refuted at L = 2-3" in line(text, "SISO")
    assert "reproduced" in line(text, "SIMO")
    assert "all CG: not faster up to L = 4" in line(text, "MIMO all")


def test_winners_and_ties() -> None:
    """Who is within the quartiles of the fastest is named with it."""

    def close(setting: str, contestant: str, degree: int) -> float:
        if contestant == "eqtp matrix" and degree == 4:
            return 1.05 * paper(setting, "eqtp gaunt grid", degree)
        return paper(setting, contestant, degree)

    rows = record(close)["rows"]
    assert Slice(rows).fastest("MIMO all", 1) == ("CG sparse",)
    assert Slice(rows).fastest("MIMO all", 4) == ("grid", "matrix")
    text = findings(record(close))
    assert "| MIMO all | forward | L = 1: CG sparse; L = 2-3: grid; L = 4: grid or matrix |" in text
    assert "| SISO, ns per row, L = | 1 | 2 | 3 | 4 |" in text
    assert "| grid | 20,000 | 40,000 | 60,000 | 80,000 |" in text


def test_cheapest_per_dimension() -> None:
    """CG has L^3 dimensions for L^3 units of time, the grid 4 L + 1 for 2 L."""
    text = findings(record(paper))
    assert "| MIMO all, per dimension | forward | L = 1-4: grid |" in text
    assert "| grid | 4,000 | 4,444 | 4,615 | 4,706 |" in text


def test_gpu_and_partial_runs() -> None:
    text = findings(record(paper, device="cuda"))
    assert "### GPU, float32" in text
    assert "between CG and the grid on a GPU" in text
    some = record(paper)
    some["rows"] = [row for row in some["rows"] if "cg" in row["contestant"]]
    assert line(findings(some), "Fourier").count("not measured") == 4


def test_channels_and_refused_rows_are_left_out() -> None:
    spoiled = record(lambda *_: 1e-9)["rows"]
    for row in spoiled[::2]:
        row["status"] = "refused"
    for row in spoiled[1::2]:
        row["sizes"]["channels"] = 4
    good = record(paper)
    text = findings(good)
    good["rows"] += spoiled
    assert findings(good) == text


def test_every_operation_is_measured() -> None:
    """The names here are those of the family."""
    contestants = {name for case in cases(Choice()) for name in case.contestants}
    assert {who for whose in OPERATIONS.values() for who in whose} <= contestants


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(record(paper)))
    assert main(["findings", str(path)]) == 0
    assert "| their finding |" in capsys.readouterr().out
    path.write_text(json.dumps(record(paper, family="gaunt")))
    with pytest.raises(ValueError, match="measured none of it"):
        main(["findings", str(path)])
