"""What Triton kernels take from a device and from the operands' dtype.

float16 and bfloat16 are types of storage: arithmetic and sums are in float32.
"""

from __future__ import annotations

from functools import lru_cache

import torch

__all__ = ["ARITHMETIC", "TRITON_NAME", "lanes_of", "why_not_dtype"]

ARITHMETIC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
"""The type of the arithmetic for every dtype of operands."""

TRITON_NAME = {torch.float32: "tl.float32", torch.float64: "tl.float64"}
"""Triton's names of the types of arithmetic."""


def why_not_dtype(dtype: torch.dtype) -> str | None:
    """Why kernels of `ARITHMETIC` cannot take operands of a dtype; None where they can."""
    if dtype in ARITHMETIC:
        return None
    return f"its kernels are for {', '.join(map(str, ARITHMETIC))}, got {dtype}"


@lru_cache
def lanes_of(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's accelerators, else 32; 32 in the interpreter, too."""
    if device.type != "cuda":
        return 32
    return int(torch.cuda.get_device_properties(device).warp_size)
