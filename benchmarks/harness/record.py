"""The file of a run: written, and read by what compares and concludes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eqtp.files import write_atomically

__all__ = ["read_record", "write_record"]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, whole or not at all: a line for each row, or it has 100,000."""
    rows = ",\n".join(json.dumps(row) for row in record["rows"])
    others = {key: value for key, value in record.items() if key != "rows"}
    head = json.dumps(others, indent=1).removesuffix("\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f'{head},\n "rows": [\n{rows}\n]\n}}\n'.encode())


def read_record(path: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not the record of families of benchmarks.
    """
    try:
        record = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a JSON file that a run wrote, got {error}") from error
    if not isinstance(record, dict) or not {"machine", "clock", "rows"} <= record.keys():
        raise ValueError(
            f"{path} must be the record of families, as `eqtp bench all` writes it, got a file of "
            "another form"
        )
    return record
