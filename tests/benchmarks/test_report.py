"""The page: self-contained, well-formed, with everything that was measured, refused or absent."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from eqtp.benchmarks.__main__ import main
from eqtp.benchmarks.harness.charts import Bar, Series, bar_chart, plane
from eqtp.benchmarks.harness.pictures import pictures
from eqtp.benchmarks.harness.plots import crossovers
from eqtp.benchmarks.harness.record import write_record
from eqtp.benchmarks.harness.report import page, write_report
from eqtp.benchmarks.harness.table import summary, table


def row(case: int, contestant: str, seconds: float, **changes: Any) -> dict[str, Any]:
    times = {"median": seconds, "quartiles": [0.9 * seconds, 1.2 * seconds], "samples": [seconds]}
    ratio = {"value": 0.01 / seconds, "first": 0.009 / seconds, "third": 0.012 / seconds}
    return {
        "family": "products",
        "case": f"MIMO <natural>, L = {case}",
        "task": "forward",
        "contestant": contestant,
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "rows": 100,
        "sizes": {"L": case, "channels": 1},
        "group": "MIMO",
        "x": "L",
        "baseline": "eqtp cg",
        "status": "measured",
        "reason": "",
        "setup_seconds": 0.1,
        "wall": times,
        "cpu": times,
        "ratio": {"wall": ratio, "cpu": ratio},
        "error": 1e-7,
        "peak_bytes": 1_000_000,
        "outputs": 900,
        "expressivity": {"eqtp cg": 10 * case, "gaunt": 4 * case}.get(contestant),
        "seconds_per_output": seconds / 900,
        "flops": 1e6 * case,
        "bytes": 1e5,
        "roofline": 0.25,
        "paths": 5,
        "about": 'kernel "a" & b',
        **changes,
    }


def record() -> dict[str, Any]:
    rows = []
    for case in (1, 2, 3):
        rows += [row(case, "eqtp cg", 0.01, bar=60.0), row(case, "gaunt", 0.03 / case**1.5)]
        rows.append({**row(case, "e3nn", 0.1), "status": "refused", "reason": "error 1e-3 <TF32>"})
    return {
        "machine": {
            "cpu": "CPU", "cores": 2, "device": "cpu", "load": [0.5], "commit": "abc",
            "time": "now", "python": "3.11", "packages": {"torch": "2.13", "mace-torch": None},
        },
        "providers": {"e3nn": "0.6.0", "cuequivariance": "cuequivariance-torch is not installed"},
        "quick": True,
        "clock": "wall",
        "ceilings": {
            "1": {"bytes_per_second": 1e10, "flops_per_second": {"float32": 1e11}, "how": "C++"}
        },
        "costs": {
            "products, 1 thread(s), float32": {
                "L = 1": {"wall": 8.0, "cpu": 7.0, "compilers": 2.0},
                "L = 2": {"wall": 3.0, "cpu": 3.0, "compilers": 0.0},
            }
        },
        "failed": {"models, 1 threads, float32": "exit 1"},
        "seconds": 12.0,
        "rows": rows,
    }  # fmt: skip


def test_page_is_self_contained_and_complete(tmp_path: Path) -> None:
    write_report(tmp_path / "suite.html", record())
    text = (tmp_path / "suite.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["suite.html"]
    outside = text.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in outside
    assert "src=" not in outside
    assert "prefers-color-scheme: dark" in text
    for expected in ("refused", "error 1e-3 &lt;TF32&gt;", "FAILED", "is not installed", "MISSED"):
        assert expected in text
    for title in ("Roofline", "Expressivity and time", "Error beside time", "MIMO: f"):
        assert f"<h3>{title}" in text
    assert "fastest: eqtp cg at L = 1, gaunt from L = 3" in text
    assert "<natural>" not in text


def test_charts_are_well_formed() -> None:
    charts = re.findall(r"<svg.*?</svg>", page(record()))
    assert len(charts) >= 5
    for chart in charts:
        ElementTree.fromstring(chart)
        assert "nan" not in chart
        assert "inf" not in chart


def test_pictures_stand_alone(tmp_path: Path) -> None:
    """Files with their own colours and background; a run that lacks their families is refused."""
    whole = record()
    for family, group in (("products", "MIMO natural"), ("products", "MIMO all")):
        whole["rows"] += [{**one, "family": family, "group": group} for one in record()["rows"]]
    for family in ("convolution", "models"):
        whole["rows"] += [{**one, "family": family, "group": ""} for one in record()["rows"]]
    write_record(tmp_path / "suite.json", whole)
    assert main(["pictures", str(tmp_path / "suite.json")]) == 0
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".svg")
    assert names == [
        f"suite_{name}.svg" for name in ("convolution", "expressivity", "models", "products")
    ]
    for name in names:
        picture = (tmp_path / name).read_text()
        root = ElementTree.fromstring(picture)
        assert root.get("width") == "680"
        assert "--page" in picture
        assert "gaunt" in picture
    with pytest.raises(ValueError, match="needs the families products, convolution and models"):
        pictures(record())


def test_a_series_has_one_colour_in_all_charts() -> None:
    text = page(record())
    colours = re.findall(r"stroke:var\(--c(\d)\);stroke-width:1.5\"><title>gaunt", text)
    assert len(colours) > 3
    assert len(set(colours)) == 1


def test_more_contestants_than_colours_stay_apart() -> None:
    """Colour, fill and shape together: 32 of them."""
    series = [Series("", number, [(1, 1, ""), (2, 2, "")], joined=True) for number in range(32)]
    looks = set()
    for one in series:
        chart = plane([one], "x", "y")
        line = re.findall(r'class="line" style="([^"]*)"', chart)
        style = re.findall(r'(circle|polygon) [^>]*style="([^"]*)"', chart)[0]
        looks.add((*line, *style))
    assert len(looks) == 32


def test_short_axes_have_numbers() -> None:
    chart = plane([Series("a", 0, [(3, 30, ""), (5, 50, "")])], "x", "y")
    assert {"3", "4", "5", "30", "40", "50"} <= set(re.findall(r">(\d+)</text>", chart))


def test_numbers_and_names_do_not_overlap() -> None:
    """Over any range, and the legend ends within the chart."""
    for low, high in ((0.04, 1.1), (0.5, 90), (3, 7), (1e-3, 1e6), (900, 1000)):
        many = [Series(str(n), n, [(low, 1.0, ""), (high, 2.0, "")]) for n in range(24)]
        chart = plane(many, "x", "y")
        height = float(re.findall(r'viewBox="0 0 \d+ (\d+)"', chart)[0])
        texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', chart)
        along = sorted(float(x) for x, _, anchor in texts if anchor == "middle")
        gaps = [b - a for a, b in pairwise(along)]
        assert sum(gap < 30 for gap in gaps) <= 2  # the axis's own name stands below
        assert all(float(y) < height for _, y, _ in texts)


def test_cases_of_a_line_have_no_bar_and_the_others_have() -> None:
    one = record()
    assert "Speed-up" not in page(one)
    one["rows"] += [
        row(9, name, 0.1, family="so2", group="", task="x") for name in ("gaunt", "eqtp cg")
    ]
    assert "<h3>Speed-up, x" in page(one)


def test_points_stand_where_their_numbers_say() -> None:
    chart = plane([Series("a", 0, [(1, 1, ""), (10, 10, ""), (100, 100, "")])], "x", "y")
    places = [
        (float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)
    ][:3]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.2)
    assert places[0][1] > places[1][1] > places[2][1]


def test_bars_start_at_the_baseline() -> None:
    bars = [Bar("case", "fast", 0, 4.0, 3.5, 4.5), Bar("case", "slow", 1, 0.25, 0.2, 0.3)]
    chart = bar_chart(bars, "times")
    (a, wide_a), (b, wide_b) = (
        (float(x), float(w))
        for x, w in re.findall(r'<rect x="([\d.]+)"[^>]*width="([\d.]+)"', chart)
    )
    assert a == pytest.approx(b + wide_b, abs=0.2)
    assert wide_a == pytest.approx(wide_b, abs=0.2)


def test_crossovers() -> None:
    a = Series("a", 0, [(1, 1.0, ""), (2, 3.0, ""), (3, 5.0, "")])
    b = Series("b", 1, [(1, 2.0, ""), (2, 2.0, ""), (3, 2.0, "")])
    assert crossovers([a, b], "L") == ["fastest: a at L = 1, b from L = 2"]
    assert crossovers([b], "L") == ["fastest: b everywhere"]
    assert crossovers([], "L") == []


def test_terminal_table_and_summary() -> None:
    text = table(record()["rows"])
    assert "MISSED" in text  # the bar of 60 against a ratio of 1
    assert "refused: error 1e-3" in text
    assert "10 [9, 12]" in text
    closing = summary(record())
    assert "6 measured, 3 refused, 0 absent" in closing
    assert "11 s products, 1 thread(s), float32, of which 2 s in compilers" in closing
    assert "FAILED models" in closing
