"""Launch choices of the symmetric contraction."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CPU_CHUNK_NODES",
    "CPU_TILE_NODES",
    "TRITON_ITEM_NODES",
    "TRITON_MAX_COUPLINGS",
    "ChunkConfig",
    "TritonLaunch",
    "triton_launch",
]

CPU_TILE_NODES = 4
"""Nodes that the C++ kernel takes through the polynomials together. Every constant is loaded once
per tile; the factors of a tile should stay in the first-level cache. Value, gradient in x and
weights, second gradient in ms on one core of an AMD EPYC (Zen 4), float32, 135 nodes of four
elements, 32 channels, lmax 3, correlation 3, result 0e+1o: 2 nodes 0.126, 0.434, 0.660; 4 nodes
0.111, 0.359, 0.653; 8 nodes 0.107, 0.374, 0.728."""

CPU_CHUNK_NODES = 32
"""Nodes of one element that share a contraction of weights and couplings, and the unit of work of a
thread. 64 are no faster beyond the noise, and 32 leave more pieces to the threads: two threads need
0.369 ms for the second gradient above, one 0.672."""


@dataclass(frozen=True)
class ChunkConfig:
    """How the plain-torch kernel is cut into pieces that stay in a core's cache.

    Measured on one core of an AMD EPYC (Zen 4, 1 MB of L2 cache), float32, CPU time, 135 nodes of
    four elements, 32 channels, lmax 3, correlation 3, result 0e+1o.

    Attributes:
        node_multiple: The nodes of one element are padded to a multiple of this. The batched
            products of 60 columns take 0.32 ms, those of 64 take 0.25 ms; of 10 columns 0.35 ms.
        max_nodes: Nodes of a chunk, to bound its memory. Speed does not depend on it: 2000 nodes
            and 64 channels take 54 to 65 ms from 128 nodes per chunk to all, and 64 to 82 ms at 64.
        max_bytes: Size of the monomials of a chunk, which decides its number of channels. Second
            derivatives: 7.4 ms with 128 KiB, 5.2 with 256, 4.0 with 512, 3.6 with 1 MiB, 4.3 with 2
            MiB; 512 KiB rather than 1 MiB because such a chunk holds several arrays of this size.
    """

    node_multiple: int = 16
    max_nodes: int = 512
    max_bytes: int = 1 << 19

    def channels(self, num_channels: int, num_nodes: int, num_monomials: int, itemsize: int) -> int:
        """Number of channels of a chunk."""
        row = min(num_nodes, self.max_nodes) * num_monomials * itemsize
        return max(1, min(num_channels, self.max_bytes // max(1, row)))


@dataclass(frozen=True)
class TritonLaunch:
    """How the Triton kernels of a pass are launched and how much each takes on.

    Attributes:
        channels: Channels of a program.
        num_warps: Warps of a program.
        num_stages: Stages of Triton's software pipeline.
        max_products: Products of all statements.
        max_kept: Gradients of weights per channel that stay in registers while nodes pass by.
    """

    channels: int
    num_warps: int
    num_stages: int
    max_products: int
    max_kept: int


_TRITON_MAX_PRODUCTS = {(4, 32): 2000, (8, 32): 700, (4, 64): 1500, (8, 64): 600}
_TRITON_MAX_PRODUCTS_OF_WEIGHTS = {(4, 32): 2000, (8, 32): 450, (4, 64): 400, (8, 64): 100}


def triton_launch(itemsize: int, lanes: int, of_weights: bool) -> TritonLaunch:
    """The choice for an arithmetic type of `itemsize` bytes and warps of `lanes` threads.

    Chosen by registers and spills alone (Triton 3.7.1, `benchmarks/triton_registers`), without a
    GPU: nothing here is tuned for time. With lmax 3, correlation 3 and a result 0e+1o:

    * One warp with one channel per thread: no value takes more than one register of its size.
    * One stage: some choices of warps and stages are compiled by Triton's pipeliner into NaN rows.
    * float32 does not spill on sm_90 with the largest kernel tried, 2,766 products and all 255
      registers; 2,000 leave room.
    * float64: 896 products of the gradient in x took 252 of 255 registers on sm_80.
    * Gradient in the weights, 859 products: 34 accesses of local memory in float64 on sm_90. On
      gfx942 the constants of the loop over nodes are kept in scalar registers, of which 18 spill in
      float32 with 859 products, in float64 124 with 859, 16 with 250, 4 with 150 and none with 100.
    """
    limits = _TRITON_MAX_PRODUCTS_OF_WEIGHTS if of_weights else _TRITON_MAX_PRODUCTS
    return TritonLaunch(
        channels=lanes,
        num_warps=1,
        num_stages=1,
        max_products=limits[itemsize, lanes],
        max_kept=60 * 4 // itemsize,
    )


TRITON_ITEM_NODES = 16
"""Nodes of one element whose gradients of the weights one program sums. Not measured: enough items
for many processors with a thousand nodes, at a sixteenth of the weights' size in memory."""

TRITON_MAX_COUPLINGS = 2000
"""Non-zero constants of a contraction that are unrolled. With 498 (lmax 3, correlation 3, result
0e+1o) the kernels of a training step take 19 s of CPU time to compile, once per machine."""
