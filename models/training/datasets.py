"""Data sets: named ones, and the user's own files, split and ready to train on."""

from __future__ import annotations

import importlib.resources
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from eqtp.models.training.labels import LabelKeys
from eqtp.models.training.lookup import Lookup, Repository
from eqtp.models.training.reading import read
from eqtp.models.training.statistics import split_isolated
from eqtp.models.training.targets import TargetLabels

_LOG = logging.getLogger(__name__)

NAMES = ("3bpa", "3bpa-xtb")

# Kovács et al., J. Chem. Theory Comput. 2021, 17, 7696; MIT licence. The ids are those of
# commit 29e6d46 of the repository.
_3BPA = Repository(
    name="3bpa",
    url="https://raw.githubusercontent.com/davkovacs/BOTNet-datasets/main/dataset_3BPA/",
    blobs={
        "train_300K.xyz": "93cdf96b0a4d8d81ca52889c4697a553471779f5",
        "train_mixedT.xyz": "29a3993db824e41b1160193e447b99e1ffb1463a",
        "iso_atoms.xyz": "83cc59ef37e4f1526fb073ad12103a75af746b86",
        "test_300K.xyz": "6ea840dfce31bd7667a26e592f3625729c90441b",
        "test_600K.xyz": "681d24eeb4e9193644e6db58193b50e205a5bc0f",
        "test_1200K.xyz": "94beb5238c3573e4be4d368928460f951e07e513",
        "test_dih.xyz": "7bdd390b9aed0a677dd8036a3a5055a0b648d1f5",
    },
)
_OFFICIAL_TESTS = {
    "300K": "test_300K.xyz",
    "600K": "test_600K.xyz",
    "1200K": "test_1200K.xyz",
    "dihedral": "test_dih.xyz",
}
# Frames of train_mixedT.xyz that come from the same trajectories as the official test sets.
_STAND_INS = {"300K": slice(0, 167), "600K": slice(167, 334), "1200K": slice(334, 500)}
_STAND_IN_NAME = "mixedT hold-out"


@dataclass(frozen=True)
class Splits:
    """A data set, split and ready to train on.

    Attributes:
        name: for the report.
        train: training structures, without isolated atoms.
        valid: validation structures.
        tests: test sets by name; the first word is the condition, e.g. "300K", and a stand-in
            says so after it, "300K (mixedT hold-out)".
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
    name: str,
    *,
    folder: str | Path | None = None,
    valid_fraction: float = 0.1,
    seed: int = 0,
    download: bool = True,
) -> Splits:
    """Loads a named data set.

    `3bpa` (trained on 300 K, tested at 300, 600 and 1200 K and on dihedral scans) is looked for
    in `folder`, in the folder `3bpa` under the environment variable `EQTP_DATA`, in the user's
    cache, and is then downloaded and checked. Where nothing serves, `3bpa-xtb` takes its place,
    with a warning. `3bpa-xtb` comes with the package: the same molecule, sampled and labelled by
    GFN2-xTB.

    Args:
        name: one of `NAMES`.
        folder: where the files of `3bpa` are looked for first; it must then hold
            `train_300K.xyz`.
        valid_fraction: held out of the training frames; 0.1 gives the field's 450 + 50.
        seed: of the choice of validation frames.
        download: allows the network.

    Raises:
        ValueError: if there is no such data set, or a file of it is damaged.
        FileNotFoundError: if `folder` is given without `train_300K.xyz` in it.

    Example:
        >>> splits = load_named("3bpa-xtb")
        >>> len(splits.train), len(splits.valid), {k: len(v) for k, v in splits.tests.items()}
        (450, 50, {'300K': 100, '600K': 100, '1200K': 100})
    """
    if name == "3bpa-xtb":
        return _load_xtb(valid_fraction, seed)
    if name != "3bpa":
        raise ValueError(f"the data set must be one of {', '.join(NAMES)}, got {name!r}")
    if folder is not None and not (Path(folder) / "train_300K.xyz").is_file():
        raise FileNotFoundError(
            f"the folder of data set 3bpa must hold train_300K.xyz, got {folder}"
        )
    lookup = Lookup(_3BPA, None if folder is None else Path(folder), download)
    if lookup.find("train_300K.xyz") is None:
        note = (
            "3bpa was found neither in a folder nor on the network (set EQTP_DATA or data.path); "
            "the embedded 3bpa-xtb takes its place: the same molecule with GFN2-xTB labels, not "
            "comparable with published figures"
        )
        warnings.warn(note, stacklevel=2)
        splits = _load_xtb(valid_fraction, seed)
        splits.notes.insert(0, note)
        return splits
    return _load_3bpa(lookup, valid_fraction, seed)


def load_files(
    train_file: str | Path,
    *,
    valid_file: str | Path | None = None,
    valid_fraction: float = 0.1,
    test_files: Mapping[str, str | Path] | None = None,
    keys: LabelKeys | None = None,
    require: Sequence[str] = ("energy", "forces"),
    targets: TargetLabels | None = None,
    seed: int = 0,
) -> Splits:
    """Loads the user's own files.

    Frames with one isolated atom, in any of the files, become reference energies. Frames of
    `train_file` that are marked `split=valid` or `split=test` (as `eqtp sample` marks them) are
    not trained on: they join the validation set, and the test set of their `config_type`.

    Args:
        train_file: training frames.
        valid_file: validation frames; without it (and without marked ones) they are drawn from
            the training frames.
        valid_fraction: the fraction drawn, above 0 and below 1.
        test_files: name of a test set -> file.
        keys: names of the labels in the files.
        require: labels that every frame must have.
        targets: tensor-valued labels that every frame must have.
        seed: of the choice of validation frames.

    Raises:
        ValueError: as `read`, or if too few training frames are left.
        FileNotFoundError: if a file does not exist.
    """
    options: dict[str, Any] = {"keys": keys, "require": require, "targets": targets}
    frames, isolated = split_isolated(read(train_file, **options))
    train, valid, tests = _by_mark(frames)
    if valid_file is not None:
        more, others = split_isolated(read(valid_file, **options))
        valid, isolated = valid + more, isolated + others
    for name, file in (test_files or {}).items():
        test, others = split_isolated(read(file, **options))
        tests[name], isolated = tests.get(name, []) + test, isolated + others
    if not valid:
        train, valid = split_validation(train, valid_fraction, seed)
    if not train:
        raise ValueError(f"{train_file}: at least one frame must be left to train on, got none")
    return Splits(Path(train_file).name, train, valid, tests, isolated)


def split_validation(
    frames: Sequence[Atoms], fraction: float, seed: int
) -> tuple[list[Atoms], list[Atoms]]:
    """Draws a validation set: returns `(train, valid)`, both in the order of the frames.

    Raises:
        ValueError: if the fraction is not above 0 and below 1, or there are fewer than two frames.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"valid_fraction must be above 0 and below 1, got {fraction}")
    if len(frames) < 2:
        raise ValueError(f"at least two frames are needed to train and validate, got {len(frames)}")
    count = min(max(1, round(fraction * len(frames))), len(frames) - 1)
    order = np.random.RandomState(seed).permutation(len(frames))  # a stream fixed for good
    drawn = set(order[:count].tolist())
    train = [atoms for i, atoms in enumerate(frames) if i not in drawn]
    return train, [frames[i] for i in sorted(drawn)]


def _by_mark(
    frames: Iterable[Atoms],
) -> tuple[list[Atoms], list[Atoms], dict[str, list[Atoms]]]:
    """Training, validation and test frames by the mark `split`; unmarked ones are trained on."""
    train: list[Atoms] = []
    valid: list[Atoms] = []
    tests: dict[str, list[Atoms]] = {}
    for atoms in frames:
        mark = atoms.info.get("split")
        if mark == "test":
            tests.setdefault(str(atoms.info.get("config_type", "test")), []).append(atoms)
        else:
            (valid if mark == "valid" else train).append(atoms)
    return train, valid, tests


def _load_xtb(valid_fraction: float, seed: int) -> Splits:
    """The data set that comes with the package."""
    source = importlib.resources.files("eqtp.models.training.embedded") / "3bpa-xtb.xyz.xz"
    with importlib.resources.as_file(source) as path:
        splits = load_files(path, valid_fraction=valid_fraction, seed=seed)
    provenance = splits.isolated[0].info["provenance"]
    return replace(splits, name="3bpa-xtb", notes=[f"3bpa-xtb: {provenance}"])


def _load_3bpa(lookup: Lookup, valid_fraction: float, seed: int) -> Splits:
    """The published data set, with stand-ins for the test files that are not found."""
    notes: list[str] = []
    frames = _read_published(lookup, "train_300K.xyz", notes)
    train, valid = split_validation(frames, valid_fraction, seed)
    tests: dict[str, list[Atoms]] = {}
    mixed: list[Atoms] | None = None
    for condition, file in _OFFICIAL_TESTS.items():
        official = _read_published(lookup, file, notes)
        if official:
            tests[condition] = official
        elif condition in _STAND_INS:
            mixed = _read_published(lookup, "train_mixedT.xyz", notes) if mixed is None else mixed
            stand_in = _without(mixed[_STAND_INS[condition]], frames)
            if stand_in:
                tests[f"{condition} ({_STAND_IN_NAME})"] = stand_in
    stand_ins = [name for name in tests if name.endswith(f"({_STAND_IN_NAME})")]
    if stand_ins:
        notes.append(
            f"{_STAND_IN_NAME}, not the official test set: {', '.join(stand_ins)} are frames of "
            "train_mixedT.xyz, from the same trajectories as the official test sets (which were "
            "not found) and without the frames that also stand in train_300K.xyz"
        )
    isolated = _read_published(lookup, "iso_atoms.xyz", notes)
    return Splits("3bpa", train, valid, tests, isolated, notes, published="3bpa")


def _read_published(lookup: Lookup, name: str, notes: list[str]) -> list[Atoms]:
    """Frames of a published file, none where it is not found; a different file is noted."""
    path = lookup.find(name)
    if path is None:
        return []
    if not lookup.is_published(path):
        notes.append(f"{path} is not the published {name}: its git blob id differs")
    return read(path)


def _without(frames: Iterable[Atoms], others: Iterable[Atoms]) -> list[Atoms]:
    """The frames whose positions are not those of another frame."""
    known = {atoms.positions.tobytes() for atoms in others}
    return [atoms for atoms in frames if atoms.positions.tobytes() not in known]
