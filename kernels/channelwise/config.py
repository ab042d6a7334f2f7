"""Launch choices of the channelwise family."""

from __future__ import annotations

__all__ = ["CHUNK_BYTES", "chunk_rows"]

CHUNK_BYTES = 2 << 20


def chunk_rows(row_bytes: int) -> int:
    """Number of edges of a chunk whose messages take `row_bytes` each."""
    return max(64, CHUNK_BYTES // max(row_bytes, 1))
