"""Launch choices of the general tensor product."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "TRITON_CHUNKS",
    "TRITON_MAX_CONSTANTS",
    "TritonLaunch",
    "chunk_rows",
    "triton_launch",
]

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


@dataclass(frozen=True)
class TritonLaunch:
    """How the Triton kernels are launched and how much each takes on.

    Attributes:
        lanes: Lanes of a program.
        num_warps: Warps of a program.
        num_stages: Stages of Triton's software pipeline.
        max_products: Products of all statements.
    """

    lanes: int
    num_warps: int
    num_stages: int
    max_products: int


def triton_launch(itemsize: int, lanes: int) -> TritonLaunch:
    """The choice for an arithmetic type of `itemsize` bytes and warps of `lanes` threads.

    Chosen by registers and spills alone (Triton 3.7.1, `benchmarks/triton_registers`), without a
    GPU: nothing here is tuned for time. One lane per thread, so that no value takes more than one
    register; one stage, since Triton's pipeliner compiles some choices into NaN rows.
    """
    return TritonLaunch(
        lanes=4 * lanes, num_warps=4, num_stages=1, max_products=800 if itemsize == 4 else 500
    )


TRITON_CHUNKS = 256
"""Chunks of rows whose gradients of shared weights are summed apart: two programs for each of an
H200's 132 multiprocessors where the weights are few."""

TRITON_MAX_CONSTANTS = 2000
"""Non-zero constants of a product that are unrolled into Triton code, as in the channelwise family;
beyond, compiling takes minutes, and plain torch serves."""
