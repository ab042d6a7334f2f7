"""PNG plots of a training: parity of energies and forces, and the errors over the epochs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eqtp.files import write_atomically
from eqtp.models.training.evaluation import Evaluation

# Points drawn per panel; more only make the file slower to look at.
_MAX_POINTS = 20_000


def plot_parity(evaluations: Sequence[Evaluation], quantity: str, path: Path) -> Path | None:
    """Predictions over labels, one panel per set, with the RMSE in its title.

    Args:
        evaluations: One per set.
        quantity: "energy" (relative to the mean label, meV/atom), "forces" (eV/Å), or the name
            of a tensor target (its unit).
        path: The PNG file.

    Returns:
        The path, or None if no set has labels of the quantity.
    """
    key = "per_atom" if quantity == "energy" else quantity
    shown = [e for e in evaluations if key in e.labels]
    if not shown:
        return None
    figure = Figure(figsize=(3.6 * len(shown), 3.9), layout="constrained")
    for axes, e in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        labels, predictions = e.labels[key], e.predictions[key]
        if quantity == "energy":
            center = labels.mean()
            labels, predictions = 1000 * (labels - center), 1000 * (predictions - center)
            unit, rmse = "meV/atom", f"{e.metrics['per_atom_rmse']:.2f} meV/atom"
        elif quantity in e.units:
            unit = e.units[quantity] or "-"
            rmse = f"{e.metrics[f'{quantity}_rmse']:.4g} {unit}"
        else:
            unit, rmse = "eV/Å", f"{e.metrics['forces_rmse']:.1f} meV/Å"
        _parity_panel(axes, labels, predictions)
        origin = " - mean label" if quantity == "energy" else ""
        axes.set(title=f"{e.name}\nRMSE {rmse}", xlabel=f"label{origin} [{unit}]")
        axes.set_ylabel(f"prediction{origin} [{unit}]")
    return _save(figure, path)


def _parity_panel(axes: Any, labels: np.ndarray, predictions: np.ndarray) -> None:
    every = -(-len(labels) // _MAX_POINTS)
    low = min(labels.min(), predictions.min())
    high = max(labels.max(), predictions.max())
    margin = 0.05 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
    axes.scatter(labels[::every], predictions[::every], s=6, alpha=0.5, linewidths=0)
    axes.set(xlim=ends, ylim=ends, aspect="equal")


def plot_curves(rows: Sequence[dict[str, float]], path: Path) -> Path:
    """Errors of the training batches and of the validation set over epochs, and over time.

    Args:
        rows: Of `metrics.csv`.
        path: The PNG file.
    """
    panels = [
        ("loss", "loss"),
        ("per_atom_rmse", "energy RMSE [meV/atom]"),
        ("forces_rmse", "force RMSE [meV/Å]"),
    ]
    panels = [(key, label) for key, label in panels if rows and f"valid_{key}" in rows[0]]
    figure = Figure(figsize=(4.2 * (len(panels) + 1), 3.6), layout="constrained")
    *over_epochs, over_time = figure.subplots(1, len(panels) + 1, squeeze=False)[0]
    epochs = [row["epoch"] for row in rows]
    for axes, (key, label) in zip(over_epochs, panels, strict=True):
        for name in ("train", "valid"):
            if rows and f"{name}_{key}" in rows[0]:
                axes.plot(epochs, [row[f"{name}_{key}"] for row in rows], label=name)
        axes.set(xlabel="epoch", ylabel=label, yscale="log")
        axes.legend()
    key, label = panels[-1] if panels else ("loss", "loss")
    minutes = [row["seconds"] / 60 for row in rows]
    over_time.plot(minutes, [row[f"valid_{key}"] for row in rows], color="C1", label="valid")
    over_time.set(xlabel="minutes", ylabel=label, yscale="log")
    over_time.legend()
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    """Draws without a display, and without touching pyplot's state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    write_atomically(path, image.getvalue())
    return path
