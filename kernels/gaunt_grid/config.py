"""Launch choices of the products on the sphere."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CHUNK_BYTES",
    "CPU_MAX_STATEMENTS",
    "DENSE_LIMIT",
    "ORBITS_COST",
    "TRITON_MAX_BYTES",
    "TRITON_MAX_PARTS",
    "TRITON_MAX_WEIGHTED_PARTS",
    "TritonLaunch",
    "chunk_rows",
    "triton_launch",
]

CHUNK_BYTES = 256 << 10
"""Size of one operand's values on the grid, for the rows of a chunk of the plain-torch kernel."""

DENSE_LIMIT = 24
"""Degree of exactness up to which the plain-torch kernel multiplies by dense matrices."""


ORBITS_COST = 1.15
"""Time of an operation on a Lebedev rule, all straight-line code, over that on rings, mostly loops.

ns per row, forward, 800 rows of one channel, l x l -> 0 ... 2l, one thread of an AMD EPYC (Zen 4),
and the ratio of the operations:

    l                   4      6      7      8      9     10
    Lebedev rule      478    650    793  1,185  1,461  1,675
    rings             489    710    830  1,013  1,261  1,440
    operations       0.63   0.70   0.76   0.89   1.03   0.90
"""

CPU_MAX_STATEMENTS = 60_000
"""Operations of three transforms that are unrolled into code."""


def chunk_rows(row_bytes: int) -> int:
    """Number of rows of a chunk of the plain-torch kernel."""
    return max(1, CHUNK_BYTES // max(row_bytes, 1))


@dataclass(frozen=True)
class TritonLaunch:
    """How the Triton kernel of a call is launched.

    Attributes:
        columns: Columns (a channel of a row each) of a program.
        points: Points of a tile of the grid.
        num_warps: Warps of a program.
        num_stages: Stages of Triton's software pipeline.
        precision: How `tl.dot` multiplies.
    """

    columns: int
    points: int
    num_warps: int
    num_stages: int
    precision: str


TRITON_MAX_PARTS = 64
"""Components of a function that a program holds: degree 7. Beyond, tiles would leave registers."""


TRITON_MAX_WEIGHTED_PARTS = 16
"""Components of a function, degree 3, up to which weights are applied inside the kernels; beyond,
by torch: second gradients in weights take six tiles more, which spill 12 to 800 registers at L = 6.
"""

TRITON_MAX_BYTES = 768
"""Bytes of the padded components of all factors and sums, of one column, that a program holds. With
more its results are shared out among several kernels, since registers would spill."""


def triton_launch(itemsize: int, lanes: int, tf32: bool) -> TritonLaunch:
    """The choice for an arithmetic type of `itemsize` bytes and warps of `lanes` threads.

    Chosen by registers and spills alone (Triton 3.7.1), without a GPU: nothing here is tuned for
    time. float32 by three products of TF32 numbers, which is as accurate as float32; one product
    where `torch.set_float32_matmul_precision` allows it. AMD's matrix cores multiply float32.
    """
    exact = "ieee" if itemsize == 8 or lanes == 64 else "tf32x3"
    return TritonLaunch(
        columns=32,
        points=16,
        num_warps=4,
        num_stages=1,
        precision="tf32" if tf32 and exact == "tf32x3" else exact,
    )
