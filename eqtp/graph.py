"""Edges, sorted by receiver once and shared by all layers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eqtp.operands import check_alike

__all__ = ["EdgeOrder", "Graph", "SenderSums"]


class EdgeOrder(NamedTuple):
    """Edges sorted by receiver, int64, each [E].

    Attributes:
        receiver: Receiver of each edge, ascending.
        sender: Sender of each edge.
        edge: Number of each edge in the order in which the edges were given.
    """

    receiver: Tensor
    sender: Tensor
    edge: Tensor


class SenderSums(NamedTuple):
    """How sums at senders are made from receiver-sorted edges in chunks, in a fixed order.

    Every chunk adds up rows of its own, one for each sender it meets; a sender's rows are added
    afterwards, in the order of the chunks. All int64.

    Attributes:
        row: The row that each edge adds to, [E].
        rows: The rows of sender 0, of sender 1, and so on.
        pointers: Where each sender's rows start in `rows`, [num_src + 1].
    """

    row: Tensor
    rows: Tensor
    pointers: Tensor


class Graph:
    """Directed edges src -> dst with the orders that message passing needs.

    Messages go from `edge_src` to `edge_dst` and are summed at receivers. Per-edge tensors are
    given in the order of `edge_src` and `edge_dst`; the receiver-sorted order is an inner matter.

    A graph may be made inside a compiled function, given to one, or be an input of an exported
    program, as which it is the tree (edge_src, edge_dst, num_src, num_dst).

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
        num_src = _number(num_src)
        num_dst = num_src if num_dst is None else _number(num_dst)
        _validate(edge_src, edge_dst, num_src, num_dst)
        self._set(edge_src, edge_dst, num_src, num_dst)

    @classmethod
    def of_checked(cls, edge_src: Tensor, edge_dst: Tensor, num_src: int, num_dst: int) -> Graph:
        """A graph of edges that have been checked before."""
        graph = cls.__new__(cls)
        graph._set(edge_src, edge_dst, num_src, num_dst)
        return graph

    def _set(self, edge_src: Tensor, edge_dst: Tensor, num_src: int, num_dst: int) -> None:
        self.edge_src = edge_src
        self.edge_dst = edge_dst
        self.num_src = num_src
        self.num_dst = num_dst
        self.kept: dict[str, list[Tensor]] = {}
        """What families of kernels have made of the edges, by name."""
        self._sender_sums: dict[int, SenderSums] = {}

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

    def sender_sums(self, chunk_edges: int) -> SenderSums:
        """Rows for sums at senders, for chunks of so many receiver-sorted edges; kept."""
        if chunk_edges not in self._sender_sums:
            self._sender_sums[chunk_edges] = self._make_sender_sums(chunk_edges)
        return self._sender_sums[chunk_edges]

    def keep_sender_sums(self, chunk_edges: int, sums: SenderSums) -> None:
        """What `sender_sums` of this length is to return."""
        self._sender_sums[chunk_edges] = sums

    def _make_sender_sums(self, chunk_edges: int) -> SenderSums:
        num_chunks = -(-self.num_edges // chunk_edges)
        edges = torch.arange(self.num_edges, device=self.device)
        key = edges // chunk_edges * self.num_src + self.by_receiver.sender
        met = torch.zeros(num_chunks * self.num_src, dtype=torch.bool, device=self.device)
        met[key] = True
        number = met.cumsum(0) - 1
        by_sender = met.view(num_chunks, self.num_src).t()
        rows = number.view(num_chunks, self.num_src).t()[by_sender]
        pointers = torch.nn.functional.pad(by_sender.sum(1).cumsum(0), (1, 0))
        return SenderSums(number[key], rows, pointers)

    def _sorted(self, index: Tensor) -> Tensor:
        return index if self.receiver_order is None else index.index_select(0, self.receiver_order)


def _number(number: int) -> int:
    """As a Python integer, unless an exported program leaves it open."""
    return number if isinstance(number, torch.SymInt) else int(number)


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
    check_alike(edge_src=edge_src, edge_dst=edge_dst)
    if num_src < 0 or num_dst < 0:
        raise ValueError(f"num_src and num_dst must not be negative, got {num_src}, {num_dst}")
    if torch.compiler.is_compiling():
        return  # there are no numbers yet; the ops that read the edges check them
    for name, index, limit in (("edge_src", edge_src, num_src), ("edge_dst", edge_dst, num_dst)):
        if index.numel() > 0:
            low, high = (int(value) for value in torch.aminmax(index))
            if low < 0 or high >= limit:
                raise ValueError(
                    f"{name} must hold node indices in [0, {limit}), "
                    f"got values from {low} to {high}"
                )


def _flatten(graph: Graph) -> tuple[list[Any], None]:
    return [graph.edge_src, graph.edge_dst, graph.num_src, graph.num_dst], None


def _flatten_with_keys(graph: Graph) -> tuple[list[tuple[Any, Any]], None]:
    names = ("edge_src", "edge_dst", "num_src", "num_dst")
    return [(pytree.GetAttrKey(name), getattr(graph, name)) for name in names], None


def _unflatten(parts: Iterable[Any], _: None) -> Graph:
    return Graph.of_checked(*parts)  # parts need not be tensors: trees are mapped to other trees


pytree.register_pytree_node(
    Graph,
    _flatten,
    _unflatten,
    serialized_type_name="eqtp.Graph",
    flatten_with_keys_fn=_flatten_with_keys,
)
