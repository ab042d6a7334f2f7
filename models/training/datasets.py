"""Data sets: named ones that are looked up or downloaded, and the user's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ase import Atoms

from eqtp.models.training.labels import LabelKeys

NAMES = ("3bpa", "3bpa-xtb")


@dataclass(frozen=True)
class Splits:
    """A data set, split and ready to train on.

    Attributes:
        name: for the report.
        train: training structures, without isolated atoms.
        valid: validation structures.
        tests: test sets by name, e.g. "300K".
        isolated: frames with one isolated atom, for reference energies; may be empty.
        notes: what a reader of the results must know, e.g. that a test set is a stand-in.
        published: key of the published figures that the results stand beside, or None.
    """

    name: str
    train: list[Atoms]
    valid: list[Atoms]
    tests: dict[str, list[Atoms]] = field(default_factory=dict)
    isolated: list[Atoms] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    published: str | None = None


def load_named(
    name: str, *, folder: str | Path | None = None, seed: int = 0, download: bool = True
) -> Splits:
    """Loads a named data set."""
    raise NotImplementedError


def load_files(
    train_file: str | Path,
    *,
    valid_file: str | Path | None = None,
    valid_fraction: float = 0.1,
    test_files: Mapping[str, str | Path] | None = None,
    keys: LabelKeys | None = None,
    require: Sequence[str] = ("energy", "forces"),
    seed: int = 0,
) -> Splits:
    """Loads the user's own files."""
    raise NotImplementedError
