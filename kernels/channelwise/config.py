"""Launch choices of the channelwise family."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CHUNK_BYTES",
    "CPU_RADIAL_TILE",
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
"""Edges of a tile of the C++ kernels; their matrix elements and rows share the first-level cache."""

CPU_RADIAL_TILE = 32
"""Edges of a tile whose weights are computed: the wider, the less often the matrix is read."""


def cpu_chunk_edges(num_edges: int) -> int:
    """Edges of a chunk: 4 to 32 chunks, for any number of threads."""
    num_chunks = min(max(num_edges // 2048, 4), 32)
    return max(1, -(-num_edges // (num_chunks * CPU_TILE))) * CPU_TILE


@dataclass(frozen=True)
class TritonLaunch:
    """How the Triton kernels of a pass are launched and how much each takes on.

    Attributes:
        channels: Channels of a program.
        num_warps: Warps of a program.
        num_stages: Stages of Triton's software pipeline.
        max_kept: Values per channel that stay in registers for an edge or longer.
        max_products: Products of all statements, which bounds the time to compile.
    """

    channels: int
    num_warps: int
    num_stages: int
    max_kept: int
    max_products: int


def triton_launch(itemsize: int, lanes: int) -> TritonLaunch:
    """The choice for an arithmetic type of `itemsize` bytes and warps of `lanes` threads."""
    return TritonLaunch(
        channels=lanes,
        num_warps=1,
        num_stages=1,
        max_kept=60 * 4 // itemsize,
        max_products=1000,
    )


TRITON_PIECE_EDGES = 256
TRITON_SHARED_PROGRAMS = 1024
TRITON_MAX_TERMS = 2000
