"""Launch choices of the general tensor product."""

from __future__ import annotations

__all__ = ["chunk_rows"]

# Forward and backward, ms of CPU time of one thread, float32, for chunks of 1, 2, 4, 8, 16 MiB:
# DiffDock L=2 rows, 1000: 57 60 65 - 43; FullyConnected 64x0e+16x1o, 2000: 22 16 11 - 9;
# nequip-lips, 1000: 128 66 47 - 42; the same three with 3000, 20000 and 6000 rows at 2, 8, 16, 64
# MiB and unlimited: 246 139 199 163 167; 107 81 92 85 88; 427 365 281 241 312. Below 8 MiB the
# number of calls costs more than the cache (2 MiB L2, 32 MiB L3) saves; above, only memory grows.
CHUNK_BYTES_CPU = 8 << 20

# On other devices a chunk only bounds the memory that intermediates take.
CHUNK_BYTES_ELSEWHERE = 1 << 30

MIN_CHUNK_ROWS = 32


def chunk_rows(bytes_per_row: int, device: str) -> int:
    """Rows that are worked on at a time, given the size of their operands and intermediates."""
    limit = CHUNK_BYTES_CPU if device == "cpu" else CHUNK_BYTES_ELSEWHERE
    return max(MIN_CHUNK_ROWS, limit // max(bytes_per_row, 1))
