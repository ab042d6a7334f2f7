"""Launch choices of the channelwise family."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CHUNK_BYTES",
    "CPU_RADIAL_TILE",
    "CPU_TILE",
    "MAX_CONSTANTS",
    "TRITON_RADIAL_PROGRAMS",
    "TRITON_SHARED_PROGRAMS",
    "TritonLaunch",
    "TritonRadialLaunch",
    "chunk_rows",
    "triton_launch",
    "triton_radial_launch",
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
"""Edges of a tile of the C++ kernels, whose matrix elements and rows share the first cache.

20,000 edges at 800 receivers, 64 channels, 17 paths, one thread of an AMD EPYC (Zen 4), ms:

    tile             16     24     32
    forward         9.8   10.0   10.3
    gradients      45.9   47.0   48.3
"""

CPU_RADIAL_TILE = 32
"""Edges of a tile whose weights are computed: the wider, the less often the matrix is read."""


@dataclass(frozen=True)
class TritonLaunch:
    """How the Triton kernels of a pass are launched and how much each takes on.

    Attributes:
        channels: Channels of a program.
        num_warps: Warps of a program.
        num_stages: Stages of Triton's software pipeline.
        max_kept: Values per channel that stay in registers for an edge or longer.
        max_products: Products of all statements.
    """

    channels: int
    num_warps: int
    num_stages: int
    max_kept: int
    max_products: int


_TRITON_MAX_PRODUCTS = {(4, 32): 800, (8, 32): 500, (4, 64): 500, (8, 64): 360}


def triton_launch(itemsize: int, lanes: int) -> TritonLaunch:
    """The choice for an arithmetic type of `itemsize` bytes and warps of `lanes` threads.

    Chosen by registers and spills alone (Triton 3.7.1, `benchmarks/triton_registers`), without a
    GPU: nothing here is tuned for time.

    * One warp with one channel per thread: the sums over channels for the gradient in y need no
      shared memory and no barrier, and no value takes more than one register.
    * One stage: some choices of warps and stages are compiled by Triton's pipeliner into NaN rows,
      and which ones changes with any edit of the source.
    * 60 kept values of 4 bytes, as in a hand-made kernel that did not spill with 60 results.
    * As many products as leave no spill: with 1000, the largest kernels of mace-large take 168
      registers on sm_90 in float32 and those of nequip-benzene 254 of 255, and on gfx942 they spill
      4 to 12 registers, in float64 20 with 584 and 3 with 400.
    """
    return TritonLaunch(
        channels=lanes,
        num_warps=1,
        num_stages=1,
        max_kept=60 * 4 // itemsize,
        max_products=_TRITON_MAX_PRODUCTS[itemsize, lanes],
    )


TRITON_SHARED_PROGRAMS = 1024
"""Programs that sum the gradient of shared weights, each in a row of its own: enough for all of an
H200's 132 multiprocessors at 8 warps each; the rows of mace-large take 9 MB."""

MAX_CONSTANTS = 2000
"""Non-zero constants of a product that are unrolled into code of its own. With 1,222
(nequip-benzene) the Triton kernels of the gradient take 17 s of CPU time to compile, those of a
training step 79 s, once per machine. On CPUs the general product, which reads tables, serves
beyond."""


@dataclass(frozen=True)
class TritonRadialLaunch(TritonLaunch):
    """The same for kernels that compute the weights, h m, for a tile of edges.

    Here `max_kept` counts tiles, of edges and channels.

    Attributes:
        edges: Edges of a tile, at least 16 for `tl.dot` and less than channels.
        max_registers: Registers that the assembler may use; None where it has no such option.
        precision: How `tl.dot` multiplies.
    """

    edges: int
    max_registers: int | None
    precision: str


def triton_radial_launch(itemsize: int, lanes: int, tf32: bool) -> TritonRadialLaunch:
    """The choice for an arithmetic type of `itemsize` bytes and warps of `lanes` threads.

    Chosen by registers and spills alone (Triton 3.7.1, `benchmarks/triton_radial_registers`),
    without a GPU: nothing here is tuned for time.

    * float32 by three products of TF32 numbers, which is as accurate as float32; one product where
      `torch.set_float32_matmul_precision` allows it. AMD's matrix cores multiply float32 as it is.
    * Four warps and tiles of 16 x 32: four values per thread and tile. On NVIDIA's eight warps in
      float64: the passes of mace-large spill 275 instead of 529 accesses on sm_80, and only where
      one path does; AMD's assembler has half as many registers for eight and spills 20 times more.
    * One stage: with several, Triton's pipeliner miscompiles some loops with more than one dot.
    * No kernel of mace-medium and mace-large spills in float32; in float64 single paths of the
      gradients in x and y do (all of them: `results/triton_radial_registers.md`).
    * All 255 registers: left to itself, the assembler spilled 4 to 12 in three kernels of
      mace-medium to fit one more program on a multiprocessor.
    """
    exact = "ieee" if itemsize == 8 or lanes == 64 else "tf32x3"
    return TritonRadialLaunch(
        channels=32,
        num_warps=8 if itemsize == 8 and lanes == 32 else 4,
        num_stages=1,
        max_kept=16 if itemsize == 4 else 10,
        max_products=160,
        edges=16,
        max_registers=255 if lanes == 32 else None,
        precision="tf32" if tf32 and exact == "tf32x3" else exact,
    )


TRITON_RADIAL_PROGRAMS = 512
"""Programs that sum the gradient of the radial network's matrix, each in registers: four for each
of an H200's 132 multiprocessors. Programs of one block of channels share rows of their results;
those of mace-large take 71 MB."""
