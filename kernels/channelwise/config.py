"""Launch choices of the channelwise family."""

from __future__ import annotations

import torch

__all__ = ["CHUNK_BYTES", "chunk_rows"]

CHUNK_BYTES = 1 << 20
"""Size of the widest intermediate of a chunk, per thread: the second-level cache of this CPU holds
1 MiB. A step of MACE 32x0e+32x1o on 2,242 edges, one thread of an AMD EPYC (Zen 4), quiet machine:
64 KiB 158 ms, 128 KiB 136 ms, 256 KiB 127 ms, 512 KiB 111 ms, 1 MiB 105 ms, 2 MiB 118 ms."""


def chunk_rows(row_bytes: int) -> int:
    """Number of edges of a chunk whose widest intermediate takes `row_bytes` per edge."""
    return max(64, torch.get_num_threads() * CHUNK_BYTES // max(row_bytes, 1))
