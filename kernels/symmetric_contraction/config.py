"""Launch choices of the symmetric contraction."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ChunkConfig"]


@dataclass(frozen=True)
class ChunkConfig:
    """How the plain-torch kernel is cut into pieces that stay in a core's cache.

    Attributes:
        node_multiple: The nodes of one element are padded to a multiple of this.
        max_nodes: Nodes of a chunk.
        max_bytes: Size of the monomials of a chunk, which decides its number of channels.
    """

    node_multiple: int = 16
    max_nodes: int = 256
    max_bytes: int = 1 << 19

    def channels(self, num_channels: int, num_nodes: int, num_monomials: int, itemsize: int) -> int:
        """Number of channels of a chunk."""
        row = min(num_nodes, self.max_nodes) * num_monomials * itemsize
        return max(1, min(num_channels, self.max_bytes // max(1, row)))
