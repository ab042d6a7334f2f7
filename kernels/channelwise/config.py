"""Launch choices of the channelwise family."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CHUNK_BYTES",
    "CPU_TILE",
    "TRITON_MAX_TERMS",
    "TRITON_PIECE_EDGES",
    "TRITON_SHARED_PROGRAMS",
    "TritonLaunch",
    "chunk_rows",
    "cpu_chunk_edges",
    "triton_launch",
]

CHUNK_BYTES = 512 << 10
"""Size of the widest intermediate of a chunk. Several of them are alive at a time and share the
second-level cache, 1 MiB per core here. MACE 32x0e+32x1o on 2,242 edges, two threads of an AMD EPYC
(Zen 4), fastest of ten, ms:

    KiB                   256    512   1024   2048   8192
    training step         112     90     93    134    139
    energy and forces      35     30     39     29     36

With one thread 512 KiB and 1 MiB are equal within the noise (111 and 105 ms), 128 KiB takes 136 ms
and 2 MiB 118 ms. Chunks that grow with the number of threads are slower than these."""


def chunk_rows(row_bytes: int) -> int:
    """Number of edges of a chunk whose widest intermediate takes `row_bytes` per edge."""
    return max(64, CHUNK_BYTES // max(row_bytes, 1))


CPU_TILE = 16
"""Edges of a tile of the C++ kernels, whose matrix elements and rows share the first-level cache."""


def cpu_chunk_edges(num_edges: int) -> int:
    """Edges of a chunk: 4 to 32 chunks, for any number of threads."""
    num_chunks = min(max(num_edges // 2048, 4), 32)
    return max(1, -(-num_edges // (num_chunks * CPU_TILE))) * CPU_TILE
