"""`eqtp bench pictures SUITE.json`: the README's pictures of a run, SVG files beside the record."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eqtp.benchmarks.harness.charts import standalone
from eqtp.benchmarks.harness.plots import (
    Figure,
    colours,
    expressivity_plots,
    plots_over_x,
    speed_up_plots,
)
from eqtp.benchmarks.harness.record import read_record
from eqtp.files import write_atomically

__all__ = ["add_arguments", "pictures", "run"]


_PICTURES: dict[str, tuple[str, str | None, Callable[..., list[Figure]]]] = {
    "products": ("products", "MIMO natural", plots_over_x),
    "expressivity": ("products", "MIMO all", expressivity_plots),
    "convolution": ("convolution", None, speed_up_plots),
    "models": ("models", None, speed_up_plots),
}
"""The family and the group (None: all) whose rows are drawn, and how; the first plot is taken."""


def pictures(record: Mapping[str, Any]) -> dict[str, str]:
    """SVG by name, of forward passes on the fewest threads.

    Products over L, expressivity beside time, and the speed-ups of convolutions and of models.

    Raises:
        ValueError: The run lacks the families `products`, `convolution` or `models`.
    """
    rows = [row for row in record["rows"] if row["status"] == "measured"]
    threads = min((row["threads"] for row in rows), default=1)
    rows = [row for row in rows if (row["task"], row["threads"]) == ("forward", threads)]
    files = {}
    for name, (family, group, draw) in _PICTURES.items():
        some = [r for r in rows if r["family"] == family and group in (None, r["group"])]
        figures = draw(some, record["clock"], colours(some))
        if not figures:
            raise ValueError(
                f"the picture {name!r} needs the families products, convolution and models, got "
                f"{sorted({row['family'] for row in rows})}: run `eqtp bench all`"
            )
        files[name] = standalone(figures[0].chart, f"{name.capitalize()}. {figures[0].title}")
    return files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench pictures`."""
    parser.add_argument("record", type=Path, help="JSON file of a run of all families")


def run(args: argparse.Namespace) -> int:
    """Writes the pictures: of suite.json, suite_products.svg and others."""
    path: Path = args.record
    for name, picture in pictures(read_record(path)).items():
        target = path.with_name(f"{path.stem}_{name}.svg")
        write_atomically(target, picture.encode())
        print(f"written: {target}")
    return 0
