"""The error table of a model as text, Markdown and JSON, beside published figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eqtp.files import write_atomically
from eqtp.models.training.evaluation import Evaluation
from eqtp.models.training.published import PUBLISHED

# Metric, its unit, and the heading of its column.
_COLUMNS = (
    ("energy_rmse", "meV", "E RMSE"),
    ("energy_mae", "meV", "E MAE"),
    ("per_atom_rmse", "meV/atom", "E RMSE"),
    ("per_atom_mae", "meV/atom", "E MAE"),
    ("forces_rmse", "meV/Å", "F RMSE"),
    ("forces_mae", "meV/Å", "F MAE"),
    ("stress_rmse", "meV/Å³", "S RMSE"),
    ("stress_mae", "meV/Å³", "S MAE"),
)


@dataclass(frozen=True)
class Report:
    """Errors on several sets, and what a reader must know about them.

    Attributes:
        title: Heading, e.g. the name of the run.
        evaluations: One per set.
        notes: Sentences below the table, e.g. that a set is a stand-in.
        published: Key of `published.PUBLISHED`; its figures make a second table.
        facts: Further entries of the JSON file.
    """

    title: str
    evaluations: Sequence[Evaluation]
    notes: Sequence[str] = ()
    published: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Both tables for a terminal."""
        parts = [self.title, _text(self._errors())]
        comparison = self._comparison()
        if comparison:
            parts += [
                "RMSE beside published models on the official test sets: E meV / F meV/Å",
                _text(comparison),
            ]
        return "\n\n".join([*parts, *(f"Note: {note}" for note in self.notes)])

    def markdown(self) -> str:
        """Both tables as Markdown."""
        parts = [f"# {self.title}", "## Errors", _markdown(self._errors())]
        comparison = self._comparison()
        if comparison:
            parts += [
                "## RMSE beside published models on the official test sets (E meV / F meV/Å)",
                _markdown(comparison),
            ]
        return "\n\n".join([*parts, *(f"Note: {note}" for note in self.notes)]) + "\n"

    def json(self) -> str:
        """The numbers: energies in meV and meV/atom, forces in meV/Å, stress in meV/Å³."""
        units = {key: unit for key, unit, _ in self._columns()}
        sets = [
            {"name": e.name, "num_frames": e.num_frames, "errors": e.metrics}
            for e in self.evaluations
        ]
        content = {"title": self.title, **self.facts, "units": units, "sets": sets}
        content["notes"] = list(self.notes)
        content["published"] = [
            {"model": p.model, "source": p.source, "energy_and_forces_rmse": p.errors}
            for p in PUBLISHED.get(self.published or "", ())
        ]
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Writes `errors.txt`, `errors.md` and `errors.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {"txt": self.text() + "\n", "md": self.markdown(), "json": self.json()}
        for suffix, content in files.items():
            write_atomically(folder / f"errors.{suffix}", content.encode())
        return [folder / f"errors.{suffix}" for suffix in files]

    def _columns(self) -> list[tuple[str, str, str]]:
        """Metric, unit and heading: of energies, forces and stress, then of tensor targets."""
        units = {name: unit for e in self.evaluations for name, unit in e.units.items()}
        kinds = [(kind, kind.upper()) for kind in ("rmse", "mae")]
        return [
            *_COLUMNS,
            *(
                (f"{name}_{kind}", unit or "-", f"{name} {heading}")
                for name, unit in units.items()
                for kind, heading in kinds
            ),
        ]

    def _errors(self) -> list[list[str]]:
        """Rows of the error table, the heading first."""
        present = {key for e in self.evaluations for key in e.metrics}
        columns = [column for column in self._columns() if column[0] in present]
        rows = [["set", "frames", *(f"{heading} [{unit}]" for _, unit, heading in columns)]]
        for e in self.evaluations:
            cells = [_cell(e.metrics, key) for key, _, _ in columns]
            rows.append([e.name, str(e.num_frames), *cells])
        return rows

    def _comparison(self) -> list[list[str]]:
        """Rows of the table of published figures; empty if there are none for these sets.

        A set's name starts with its condition ("300K (mixedT hold-out)").
        """
        published = PUBLISHED.get(self.published or "", ())
        conditions = {e.name.split()[0]: e for e in self.evaluations}
        known = [c for c in conditions if any(c in p.errors for p in published)]
        if not known:
            return []
        rows = [["model", *(conditions[c].name for c in known), "source"]]
        errors = [conditions[c].metrics for c in known]
        ours = [f"{e['energy_rmse']:.1f} / {e['forces_rmse']:.1f}" for e in errors]
        rows.append(["this model", *ours, "-"])
        for p in published:
            pairs = [p.errors.get(c) for c in known]
            figures = [f"{pair[0]:.1f} / {pair[1]:.1f}" if pair else "-" for pair in pairs]
            rows.append([p.model, *figures, p.source])
        return rows


def _cell(metrics: dict[str, float], key: str) -> str:
    """Two decimals of meV; four digits in the unit of a tensor target."""
    if key not in metrics:
        return "-"
    digits = ".2f" if key in {column[0] for column in _COLUMNS} else ".4g"
    return format(metrics[key], digits)


def _text(rows: list[list[str]]) -> str:
    """Aligned columns with a rule below the heading; the first column is left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|" + "|".join(["---", *["---:"] * (len(rows[0]) - 1)]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
