"""The metrics of a run: `metrics.csv` with one row per validation, and TensorBoard events."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from torch.utils.tensorboard.writer import SummaryWriter

from eqtp.files import write_atomically
from eqtp.models.training.checkpoint import RunDirectory

Row = Mapping[str, float | int]


class MetricsLog:
    """Writes rows; a resumed run first cuts off those that its checkpoint does not know.

    Args:
        run: Where to write.
        rows: Rows that the checkpoint knows.
        step: Optimiser steps that it knows; later TensorBoard events are hidden.
    """

    def __init__(self, run: RunDirectory, rows: int = 0, step: int = 0) -> None:
        self.path = run.metrics
        self.rows = rows
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = lines[: rows + 1] if rows else []
        write_atomically(self.path, "".join(kept).encode())
        self._events = SummaryWriter(str(run.path), purge_step=step + 1 if step else None)

    def write_row(self, row: Row) -> None:
        """Appends a row (and before the first one the header) in one write."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        if self.path.stat().st_size == 0:
            writer.writeheader()
        writer.writerow(row)
        with self.path.open("a") as stream:
            stream.write(text.getvalue())
        self.rows += 1
        self.write_scalars(row, int(row["step"]))
        self._events.flush()

    def write_scalars(self, values: Row, step: int) -> None:
        """Adds numbers to TensorBoard only; `train_loss` becomes `train/loss`."""
        for name, value in values.items():
            self._events.add_scalar(name.replace("_", "/", 1), value, step)

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


def read_metrics(run: RunDirectory) -> list[dict[str, float]]:
    """The rows of `metrics.csv`."""
    with run.metrics.open(newline="") as stream:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]
