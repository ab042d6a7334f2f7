"""Launch choices of the many-body Gaunt product."""

from __future__ import annotations

__all__ = ["CPU_CHUNK_NODES", "CPU_TILE_NODES", "TORCH_MAX_BYTES"]

CPU_TILE_NODES = 1
"""Nodes that the C++ kernel takes through the grid together. Value, gradient, second gradient of
the flat form in ms of CPU time on an AMD EPYC (Zen 4), float32, 135 nodes of four elements,
32 channels, lmax 3, correlation 3, result 0e+1o: 1 node 0.22, 0.57, 1.66; 2 nodes 0.22, 0.51, 1.85;
4 nodes 0.23, 0.56, 1.87, in a noisy run: constants come from the first cache fast enough."""

CPU_CHUNK_NODES = 32
"""Nodes of one element whose gradients of the weights are summed before they reach memory, and the
unit of work of a thread, as in the symmetric contraction."""

TORCH_MAX_BYTES = 1 << 20
"""Size of a function's values on the grid that the plain-torch kernel computes at a time."""
