"""Launch choices of the many-body Gaunt product."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CPU_CHUNK_NODES",
    "CPU_TILE_NODES",
    "TORCH_MAX_BYTES",
    "TRITON_ITEM_NODES",
    "TRITON_MAX_LMAX",
    "TritonLaunch",
    "triton_max_components",
]

CPU_TILE_NODES = 1
"""Nodes that the C++ kernel takes through the grid together. Value, gradient, second gradient of
the flat form in ms of CPU time on an AMD EPYC (Zen 4), float32, 500 nodes of four elements,
64 channels, lmax 3, correlation 3, result 0e+1o: 1 node 0.46, 1.55, 2.96; 2 nodes 0.59, 1.53, 3.15;
4 nodes 0.62, 1.78, 4.09: constants come from the first cache fast enough."""

CPU_CHUNK_NODES = 32
"""Nodes of one element whose gradients of the weights are summed before they reach memory, and the
unit of work of a thread, as in the symmetric contraction."""

TORCH_MAX_BYTES = 1 << 20
"""Size of a function's values on the grid that the plain-torch kernel computes at a time."""


@dataclass(frozen=True)
class TritonLaunch:
    """How the Triton kernels are launched: chosen by registers and spills alone, without a GPU.

    One warp with one channel per thread, so that a value takes one register of its size; one stage,
    because some choices of warps and stages are compiled by Triton's pipeliner into NaN rows.

    Attributes:
        channels: Channels of a program.
        num_warps: Warps of a program.
        num_stages: Stages of Triton's software pipeline.
    """

    channels: int
    num_warps: int = 1
    num_stages: int = 1


TRITON_MAX_LMAX = {4: 6, 8: 3}
"""Highest degree per size of a number in bytes: the kernels below it do not spill."""


def triton_max_components(itemsize: int, dual: bool, of_weights: bool) -> int:
    """Components of f whose gradients one kernel keeps.

    Triton 3.7.1, sm_90, correlation 3, result 0e+1o. float32, lmax 6: the gradient in x takes 254
    registers with all 49 components; the second gradient spilled 30 times with them and takes
    241 with 25. Gradients in weights keep the gradients in f and their derivatives: float32, lmax
    6, 25 components spilled 153 times, float64, lmax 3, 12 components 81 times.
    """
    return (100 if of_weights else 200) // itemsize // (2 if dual else 1)


TRITON_ITEM_NODES = 16
"""Nodes of one element whose gradients of the weights one program sums; not measured."""
