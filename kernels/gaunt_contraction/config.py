"""Launch choices of the many-body Gaunt product."""

from __future__ import annotations

__all__ = ["TORCH_MAX_BYTES"]

TORCH_MAX_BYTES = 1 << 20
"""Size of a function's values on the grid that the plain-torch kernel computes at a time."""
