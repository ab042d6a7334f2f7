"""Launch choices of the SO(2) family."""

from __future__ import annotations

from eqtp.kernels.so2.frames import FrameLayout

__all__ = ["CHUNK_BYTES", "FUSED_CHUNK_BYTES", "MAX_DEGREE", "chunk_rows", "fused_chunk_rows"]

CHUNK_BYTES = 1 << 20
"""Features of the edges of a chunk in plain PyTorch, in bytes of float32; a few tensors of this
size are alive at a time."""


def chunk_rows(frame: FrameLayout) -> int:
    """Edges of a chunk in plain PyTorch."""
    return max(64, CHUNK_BYTES // (4 * max(int(frame.irreps.dim), 1)))


MAX_DEGREE = 32
"""Largest degree of the C++ kernels, the length of a table on the stack; w3j is exact far beyond 16
and compiling the code of one degree takes 2 s of CPU time at 16."""


FUSED_CHUNK_BYTES = 2 << 20
"""Frames of the edges of a chunk of the fused convolution, in bytes of float32."""


def fused_chunk_rows(frame_in: FrameLayout, frame_out: FrameLayout) -> int:
    """Edges of a chunk of the fused convolution: enough that matrices are read rarely."""
    return max(256, FUSED_CHUNK_BYTES // (4 * max(frame_in.dim, frame_out.dim, 1)))
