"""Launch choices of the general tensor product."""

from __future__ import annotations

__all__ = ["CHUNK_BYTES", "MIN_CHUNK_ROWS", "chunk_rows"]

CHUNK_BYTES = 1 << 20

MIN_CHUNK_ROWS = 32


def chunk_rows(bytes_per_row: int) -> int:
    """Rows that are worked on at a time, so that their operands and intermediates fit the cache."""
    return max(MIN_CHUNK_ROWS, CHUNK_BYTES // max(bytes_per_row, 1))
