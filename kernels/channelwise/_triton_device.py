"""What the Triton kernels take from a device and from the operands' dtype."""

from __future__ import annotations

from functools import lru_cache

import torch

__all__ = ["ARITHMETIC", "lanes_of"]

ARITHMETIC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
"""The type of the arithmetic for every dtype of operands."""


@lru_cache
def lanes_of(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's accelerators, else 32; 32 in the interpreter, too."""
    if device.type != "cuda":
        return 32
    return int(torch.cuda.get_device_properties(device).warp_size)
