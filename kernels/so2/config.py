"""Launch choices of the SO(2) family."""

from __future__ import annotations

from eqtp.kernels.so2.frames import FrameLayout

__all__ = ["CHUNK_BYTES", "chunk_rows"]

CHUNK_BYTES = 1 << 20
"""Features of the edges of a chunk in plain PyTorch, in bytes of float32; a few tensors of this
size are alive at a time."""


def chunk_rows(frame: FrameLayout) -> int:
    """Edges of a chunk in plain PyTorch."""
    return max(64, CHUNK_BYTES // (4 * max(int(frame.irreps.dim), 1)))
