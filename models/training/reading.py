"""Reading labelled structures: nothing wrong in a file gets past here."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import iread

from eqtp.models.training.labels import LabelKeys, attach_labels, find_labels, label_names
from eqtp.models.training.neighbors import edges
from eqtp.models.training.targets import TargetLabels, attach_targets, find_targets

# Any cutoff finds atoms at one place; vesin needs 0.1 ms for 27 atoms at 0.5 Å, but 8.5 ms at
# 0.001 Å, where it makes very many cells.
_OVERLAP_CUTOFF = 0.5
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


def read(
    path: str | Path,
    *,
    keys: LabelKeys | None = None,
    require: Sequence[str] | None = None,
    targets: TargetLabels | None = None,
    targets_required: bool = True,
    index: str = ":",
) -> list[Atoms]:
    """Reads labelled structures from any file that ASE reads, compressed or not.

    Labels are looked for under `energy`, `forces`, `stress`, `virials` and the same names with
    `REF_` before them, or under the keys that the user chose.

    Args:
        path: extended XYZ (also .xz, .gz, .bz2), ASE database, VASP output, ...
        keys: names of the labels in the file.
        require: labels that every frame must have, e.g. `("energy", "forces")`; isolated
            atoms need an energy only. By default each frame must have at least one of energy
            and forces; `()` asks for none.
        targets: tensor-valued labels that every frame but isolated atoms must have; they then
            stand under their targets' names in `info` or `arrays`.
        targets_required: whether a frame without one of them is an error.
        index: frames to read, in ASE's notation, e.g. ":100".

    Returns:
        Structures whose labels stand in a `SinglePointCalculator` under ASE's names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and frame, for an empty or truncated file, missing, wrongly
            shaped or non-finite labels or positions, two atoms at one place, or a periodic cell
            without volume.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the file must exist, got {path}")
    frames = []
    labelled = require is None or len(require) > 0 or bool(targets)
    for i, atoms in enumerate(_frames(path, index, labelled)):
        where = f"{path}, frame {i}"
        edges(atoms, _OVERLAP_CUTOFF, where)
        labels = find_labels(atoms, keys, where)
        _check_present(atoms, labels, require, where)
        wanted = targets if targets and not is_isolated_atom(atoms) else {}
        tensors = find_targets(atoms, wanted, where, required=targets_required)
        frames.append(attach_labels(atoms, labels))
        attach_targets(frames[-1], tensors, wanted)
    return frames


def is_isolated_atom(atoms: Atoms) -> bool:
    """Tells whether a frame is one atom alone, whose energy is a reference energy E0."""
    marked = atoms.info.get("config_type") == "IsolatedAtom"
    return len(atoms) == 1 and (marked or not atoms.pbc.any())


def _frames(path: Path, index: str, labelled: bool) -> Iterator[Atoms]:
    """Frames of a file, with reading errors that name file and frame."""
    text = _checked_xyz(path, labelled)
    source, form = (path, None) if text is None else (io.StringIO(text), "extxyz")
    number = 0
    try:
        for atoms in iread(source, index=index, format=form, do_not_split_by_at_sign=True):
            yield atoms
            number += 1
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise ValueError(
            f"{path}, frame {number}: the file must be complete and readable by ASE, "
            f"got {type(error).__name__}: {error}"
        ) from error
    if number == 0:
        raise ValueError(f"{path}: the file must hold at least one structure, got none")


def _checked_xyz(path: Path, labelled: bool) -> str | None:
    """Text of an (extended) XYZ file, None for other formats; refuses what ASE would not see.

    ASE stops at a blank line, ignores surplus columns, and cannot see that the last number of a
    file was cut; a labelled file must therefore end with a newline. ASE gets the text, not the
    file, as it seeks to every frame, which in a compressed file means to start anew.
    """
    suffix = path.suffix if path.suffix in _OPENERS else ""
    if path.name.removesuffix(suffix).rpartition(".")[2] not in ("xyz", "extxyz"):
        return None
    with _OPENERS.get(suffix, open)(path, "rb") as file:
        try:
            text: str = file.read().decode()
        except (EOFError, OSError, lzma.LZMAError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: the file must be complete, got {error}") from error
    if not text.strip():
        raise ValueError(f"{path}: the file must hold at least one structure, got an empty file")
    lines = text.split("\n")
    frame, line = 0, 0
    while line < len(lines) and lines[line].strip():
        line = _check_frame(lines, line, f"{path}, frame {frame}")
        frame += 1
    if any(rest.strip() for rest in lines[line:]):
        raise ValueError(f"{path}, frame {frame}: frames must not be separated by blank lines")
    if labelled and lines[-1].strip():
        raise ValueError(
            f"{path}, frame {frame - 1}: the last line must end with a newline, without it the "
            "last number may be cut; append one if the file is complete"
        )
    return text


def _check_frame(lines: list[str], start: int, where: str) -> int:
    """Checks the number of rows and columns of one XYZ frame; returns the line after it."""
    if not lines[start].strip().isdigit() or int(lines[start]) == 0:
        raise ValueError(
            f"{where}: line {start + 1} must be a number of atoms, got {lines[start]!r:.60}"
        )
    count = int(lines[start])
    rows = lines[start + 2 : start + 2 + count]
    if len(rows) < count or not rows[-1].strip():
        present = sum(bool(row.strip()) for row in rows)
        raise ValueError(
            f"{where}: the file must be complete, but it ends after {present} of {count} atoms"
        )
    properties = re.search(r'\bProperties="?([\w:]+)', lines[start + 1])
    if properties is not None:
        width = sum(int(n) for n in properties.group(1).split(":")[2::3])
        for number, row in enumerate(rows, start=start + 3):
            if len(row.split()) != width:
                raise ValueError(
                    f"{where}: line {number} must have {width} columns "
                    f"(Properties={properties.group(1)}), got {len(row.split())}"
                )
    line = start + 2 + count
    while line < len(lines) and lines[line].lstrip().startswith("VEC"):  # cell as pseudo-atoms
        line += 1
    return line


def _check_present(
    atoms: Atoms, labels: dict[str, object], require: Sequence[str] | None, where: str
) -> None:
    """Refuses a frame without the labels that are needed."""
    if require is None:
        missing = [] if "energy" in labels or "forces" in labels else ["energy or forces"]
    else:
        needed = ("energy",) if is_isolated_atom(atoms) and require else require
        missing = [name for name in needed if name not in labels]
    if missing:
        raise ValueError(
            f"{where}: labels must be found under energy, forces, stress or REF_energy, "
            f"REF_forces, REF_stress; missing: {', '.join(missing)}; the names there are: "
            f"{', '.join(label_names(atoms)) or 'none'}; name the keys of your file"
        )
