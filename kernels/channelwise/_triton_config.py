"""Launch choices of the channelwise family's Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "TRITON_MAX_TERMS",
    "TRITON_PIECE_EDGES",
    "TRITON_SHARED_PROGRAMS",
    "TritonLaunch",
    "triton_launch",
]


@dataclass(frozen=True)
class TritonLaunch:
    """How the Triton kernels of a pass are launched and how much each takes on.

    Attributes:
        channels: Channels of a program.
        num_warps: Warps of a program.
        num_stages: Stages of Triton's software pipeline.
        max_kept: Values per channel that stay in registers for an edge or longer.
        max_products: Products of all statements, which bounds the time to compile.
    """

    channels: int
    num_warps: int
    num_stages: int
    max_kept: int
    max_products: int


def triton_launch(itemsize: int, lanes: int) -> TritonLaunch:
    """The choice for an arithmetic type of `itemsize` bytes and warps of `lanes` threads."""
    max_products = {(4, 32): 800, (8, 32): 500, (4, 64): 500, (8, 64): 400}[itemsize, lanes]
    return TritonLaunch(
        channels=lanes,
        num_warps=1,
        num_stages=1,
        max_kept=60 * 4 // itemsize,
        max_products=max_products,
    )


TRITON_PIECE_EDGES = 256
TRITON_SHARED_PROGRAMS = 1024
TRITON_MAX_TERMS = 2000
