"""Launch choices of the products on the sphere."""

from __future__ import annotations

__all__ = ["CHUNK_BYTES", "CPU_MAX_STATEMENTS", "DENSE_LIMIT", "chunk_rows"]

CHUNK_BYTES = 256 << 10
"""Size of one operand's values on the grid, for the rows of a chunk of the plain-torch kernel."""

DENSE_LIMIT = 24
"""Degree of exactness up to which the plain-torch kernel multiplies by dense matrices."""


CPU_MAX_STATEMENTS = 60_000
"""Operations of three transforms that are unrolled into code."""


def chunk_rows(row_bytes: int) -> int:
    """Number of rows of a chunk of the plain-torch kernel."""
    return max(1, CHUNK_BYTES // max(row_bytes, 1))
