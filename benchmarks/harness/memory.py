"""Memory: the peak of a call, and an allocator that keeps what it has."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["keep_freed_memory", "peak_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int | None:
    """Bytes that a call adds to this process (or to the GPU) at its peak; None where unknown.

    On Linux the kernel's high-water mark is reset before the call and read after it; memory that
    the allocator kept from before is handed back first, so that reusing it counts.
    """
    gc.collect(1)  # what came last; all of torch takes 0.2 s, for every contestant of every task
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError, StopIteration):
        return None


def keep_freed_memory() -> None:
    """Fixes what glibc's allocator adapts while a program runs: when it hands memory back.

    By default a free end of the heap is handed back and faulted in again, page by page, depending
    on what happens to lie above it, and tensors above a threshold are mapped afresh in every call;
    the threshold follows what was freed before. One and the same call took 84 ms in one run and
    122 ms in the next, and of 18 ratios of the quick `convolution` family 12 to 14 were within
    10 % from run to run; with this, 16 to 18 (2 cores, EPYC). The threshold is the largest that
    glibc itself goes to: larger tensors are mapped afresh, as they are in every program.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
