"""Reading what a run has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["read_record"]


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
