"""Launch choices of the SO(2) family."""

from __future__ import annotations

from dataclasses import dataclass

from eqtp.kernels.so2.frames import FrameLayout

__all__ = ["CHUNK_BYTES", "FUSED_CHUNK_BYTES", "MAX_DEGREE", "chunk_rows", "fused_chunk_rows"]

CHUNK_BYTES = 1 << 20
"""Features of the edges of a chunk in plain PyTorch, in bytes of float32; a few tensors of this
size are alive at a time."""


def chunk_rows(frame: FrameLayout) -> int:
    """Edges of a chunk in plain PyTorch."""
    return max(64, CHUNK_BYTES // (4 * max(int(frame.irreps.dim), 1)))


MAX_DEGREE = 32
"""Largest degree of the C++ kernels, the length of their tables on the stack. The code of degree 12
takes 1.9 s of CPU time to compile, that of degree 16 3.2 s, once per machine."""


FUSED_CHUNK_BYTES = 2 << 20
"""Frames of the edges of a chunk of the fused convolution, in bytes of float32, where that is at
least 512 edges. Forward and backward, 64 channels, one thread of an AMD EPYC (Zen 4) that others
used too, us per edge by edges of a chunk:

                 64    128    256    512   1024   2048
    lmax 2     25.7   19.2   16.6   15.4   14.4   14.5
    lmax 6      184    147    139    128    138    134
"""


def fused_chunk_rows(frame_in: FrameLayout, frame_out: FrameLayout) -> int:
    """Edges of a chunk of the fused convolution: enough that matrices are read rarely."""
    return max(512, FUSED_CHUNK_BYTES // (4 * max(frame_in.dim, frame_out.dim, 1)))


MAX_TRITON_DEGREE = 12
"""Largest degree whose Triton code is unrolled: at most 355 statements."""


@dataclass(frozen=True)
class TritonRotation:
    """How the rotations of a block are launched.

    Attributes:
        edges: Edges of a program's tile; 1 where a program walks the edges of a node.
        channels: Channels of a program's tile.
        num_warps: Warps of a program.
    """

    edges: int
    channels: int
    num_warps: int


def triton_rotation(mul: int, *, nodes: bool) -> TritonRotation:
    """The choice for a block of `mul` channels, by registers and spills alone, without a GPU.

    One warp and one or two values per lane: degree 6 takes up to 122 registers on sm_80 and sm_90
    and 80 on gfx942 with Triton 3.7.1, and nothing is spilled to memory up to there
    (`benchmarks/so2_registers`).
    """
    channels = min(64, max(16, 1 << (mul - 1).bit_length())) if mul > 1 else 16
    return TritonRotation(1 if nodes else max(1, 32 // channels), channels, 1)


@dataclass(frozen=True)
class TritonLinear:
    """How the linear maps are launched.

    Attributes:
        edges: Edges of a program's tile.
        columns: Columns of a program's tile.
        depth: Numbers that are multiplied and summed at a time.
        rows: Rows of a program's tile of the weights' gradient; it has `columns` columns.
        num_warps: Warps of a program.
        num_stages: Stages of Triton's software pipeline.
        precision: How `tl.dot` multiplies.
    """

    edges: int
    columns: int
    depth: int
    rows: int
    num_warps: int
    num_stages: int
    precision: str


def triton_linear(precision: str) -> TritonLinear:
    """The choice for a precision, by registers and spills alone, without a GPU.

    Registers and spilled ones of the kernel of A and B and of the gradient of both, Triton 3.7.1,
    three-pass TF32 (gfx942: float32), by edges x columns x depth and warps:

                          sm_80                    sm_90                  gfx942
        64 x 64 x 32, 4   255 + 555, 255 + 635     255 + 64, 255          198, 177 + 28
        64 x 64 x 32, 8   255 + 526, 32 + 3943     250, 224               174, 158
        64 x 32 x 32, 4   255 + 51, 255 + 3        255, 255 + 9           198, 173
        64 x 64 x 16, 4   255, 255 + 120           255, 235               128, 118

    The last serves, with 32 rows of the weights instead of 64 in a tile of their gradient.
    """
    return TritonLinear(64, 64, 16, 32, 4, 1, precision)


TRITON_SHARE_EDGES = 1024
"""Edges whose share of the weights' gradient one program sums, at least."""

TRITON_MAX_SHARES = 16
"""Shares of the weights' gradient: the sums before the last take at most 48 times its memory."""
