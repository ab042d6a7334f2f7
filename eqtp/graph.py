"""Edges, sorted by receiver once and shared by all layers."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["EdgeOrder", "Graph"]


class EdgeOrder(NamedTuple):
    """Edges sorted by one of their ends, int64, each [E].

    Attributes:
        node: That end, ascending.
        across: The other end.
        edge: Number of the edge in the order in which the edges were given.
    """

    node: Tensor
    across: Tensor
    edge: Tensor


class Graph:
    """Directed edges src -> dst with the orders that message passing needs.

    Messages go from `edge_src` to `edge_dst` and are summed at receivers. Per-edge tensors are
    given in the order of `edge_src` and `edge_dst`; the receiver-sorted order is an inner matter.

    Args:
        edge_src: Sender of each edge, int32 or int64, shape [E].
        edge_dst: Receiver of each edge, same shape and dtype.
        num_src: Number of senders.
        num_dst: Number of receivers; `num_src` when None. Different for bipartite graphs.

    Raises:
        TypeError: The indices are not int32 or int64 tensors of one dtype.
        ValueError: Shapes differ, devices differ, or an index is out of range.

    Example:
        >>> graph = Graph(torch.tensor([1, 0, 2]), torch.tensor([0, 1, 1]), num_src=3)
        >>> graph.num_edges, graph.receiver_pointers.tolist()
        (3, [0, 1, 3, 3])
    """

    def __init__(
        self, edge_src: Tensor, edge_dst: Tensor, num_src: int, num_dst: int | None = None
    ) -> None:
        self.edge_src = edge_src
        self.edge_dst = edge_dst
        self.num_src = int(num_src)
        self.num_dst = self.num_src if num_dst is None else int(num_dst)
        _validate(edge_src, edge_dst, self.num_src, self.num_dst)

    def __repr__(self) -> str:
        return f"Graph({self.num_edges} edges, {self.num_src} -> {self.num_dst} nodes)"

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return self.edge_src.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the edges."""
        return self.edge_src.device

    @cached_property
    def receiver_order(self) -> Tensor | None:
        """Permutation that sorts the edges by receiver (stable); None if they already are."""
        if bool((self.edge_dst[1:] >= self.edge_dst[:-1]).all()):
            return None
        return torch.argsort(self.edge_dst, stable=True)

    @cached_property
    def receiver_pointers(self) -> Tensor:
        """Row pointers [num_dst + 1] of the receiver-sorted edges (CSR)."""
        return _row_pointers(self.edge_dst, self.num_dst)

    @cached_property
    def sender_order(self) -> Tensor:
        """Permutation that sorts the receiver-sorted edges by sender (stable)."""
        return torch.argsort(self.sorted_src, stable=True)

    @cached_property
    def sender_pointers(self) -> Tensor:
        """Row pointers [num_src + 1] of the sender-sorted edges (the transposed CSR)."""
        return _row_pointers(self.edge_src, self.num_src)

    @cached_property
    def sorted_src(self) -> Tensor:
        """Senders in receiver-sorted order."""
        return self._sorted(self.edge_src)

    @cached_property
    def sorted_dst(self) -> Tensor:
        """Receivers in receiver-sorted order."""
        return self._sorted(self.edge_dst)

    @cached_property
    def by_receiver(self) -> EdgeOrder:
        """The edges in receiver-sorted order."""
        edge = self.receiver_order
        if edge is None:
            edge = torch.arange(self.num_edges, device=self.device)
        return EdgeOrder(self.sorted_dst.long(), self.sorted_src.long(), edge)

    @cached_property
    def by_sender(self) -> EdgeOrder:
        """The edges in sender-sorted order; edges of one sender in receiver-sorted order."""
        receivers, senders, edge = self.by_receiver
        order = self.sender_order
        return EdgeOrder(senders[order], receivers[order], edge[order])

    def _sorted(self, index: Tensor) -> Tensor:
        return index if self.receiver_order is None else index.index_select(0, self.receiver_order)


def _row_pointers(index: Tensor, num_rows: int) -> Tensor:
    counts = torch.bincount(index, minlength=num_rows)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _validate(edge_src: Tensor, edge_dst: Tensor, num_src: int, num_dst: int) -> None:
    for name, index in (("edge_src", edge_src), ("edge_dst", edge_dst)):
        if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
            got = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"{name} must be an int32 or int64 tensor, got {got}")
    if edge_src.ndim != 1 or edge_src.shape != edge_dst.shape:
        raise ValueError(
            "edge_src and edge_dst must be one-dimensional and of one length, "
            f"got shapes {tuple(edge_src.shape)} and {tuple(edge_dst.shape)}"
        )
    if edge_src.dtype != edge_dst.dtype or edge_src.device != edge_dst.device:
        raise TypeError(
            "edge_src and edge_dst must share dtype and device, got "
            f"{edge_src.dtype} on {edge_src.device} and {edge_dst.dtype} on {edge_dst.device}"
        )
    if num_src < 0 or num_dst < 0:
        raise ValueError(f"num_src and num_dst must not be negative, got {num_src}, {num_dst}")
    for name, index, limit in (("edge_src", edge_src, num_src), ("edge_dst", edge_dst, num_dst)):
        if index.numel() > 0:
            low, high = (int(value) for value in torch.aminmax(index))
            if low < 0 or high >= limit:
                raise ValueError(
                    f"{name} must hold node indices in [0, {limit}), "
                    f"got values from {low} to {high}"
                )
