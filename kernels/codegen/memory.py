"""Fresh memory for large results, in large pages where the system offers them."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from torch import Tensor

__all__ = ["empty"]

HUGE_PAGE = 2 << 20
MINIMUM_BYTES = 4 * HUGE_PAGE
MADV_HUGEPAGE = 14  # Linux


def empty(like: Tensor, *shape: int) -> Tensor:
    """`like.new_empty(shape)`, large ones in pages of 2 MiB (`madvise`, Linux).

    Fresh memory is mapped and cleared at its first touch, 4 KiB at a time. Writing the gradient of
    87 MB of weights (20,000 edges, 64 channels, 17 paths) took 94 ms that way, 50 of them in the
    kernel; in large pages 60 ms (AMD EPYC, Zen 4, one thread).
    """
    tensor = like.new_empty(shape)
    size = tensor.numel() * tensor.element_size()
    madvise = _madvise()
    if madvise is not None and size >= MINIMUM_BYTES:
        start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        end = (tensor.data_ptr() + size) // HUGE_PAGE * HUGE_PAGE
        madvise(start, end - start, MADV_HUGEPAGE)  # only advice: a refusal changes nothing
    return tensor


@cache
def _madvise() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
