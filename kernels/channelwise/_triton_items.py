"""Work of the Triton kernels' programs: nodes, and pieces of nodes with many edges.

Made on the device, once per graph; the number of items is bounded by shapes, so that nothing waits
for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.channelwise._triton_source import End
from eqtp.kernels.channelwise.config import TRITON_PIECE_EDGES

__all__ = ["Items", "items_of", "keep_items"]


@dataclass(frozen=True)
class Items:
    """Work of the programs: nodes, then the further pieces of nodes with many edges.

    Attributes:
        num_nodes: Number of nodes.
        number: Number of items; some behind the last piece have no edges.
        tensors: Node, first and last edge of every item, and the edges; empty for rows.
        pointers: Where each node's further pieces start; None where there cannot be any.
    """

    num_nodes: int
    number: int
    tensors: Mapping[str, Tensor]
    pointers: Tensor | None

    @classmethod
    def of_rows(cls, rows: int) -> Items:
        """Every row by itself."""
        return cls(rows, rows, {}, None)

    @classmethod
    def of_edges(cls, first: Tensor, across: Tensor, edge: Tensor) -> Items:
        """Nodes whose edges are first[n] <= position < first[n + 1].

        Args:
            first: Row pointers, [nodes + 1].
            across: The node at the other end of every edge, in the order of the pointers.
            edge: The edges' numbers in the order in which they were given.
        """
        num_nodes, num_edges = len(first) - 1, len(edge)
        node = torch.arange(num_nodes, device=first.device)
        start = first[:-1]
        pointers = None
        num_pieces = num_edges // TRITON_PIECE_EDGES  # at least sum((edges - 1) // PIECE)
        if num_pieces > 0:
            further = (first.diff() - 1).clamp(min=0) // TRITON_PIECE_EDGES
            pointers = torch.nn.functional.pad(further.cumsum(0), (1, 0))
            piece = torch.arange(num_pieces, device=first.device)
            owner = torch.searchsorted(pointers, piece, right=True) - 1
            is_used = owner < num_nodes
            owner = owner.clamp(max=num_nodes - 1)
            offset = (piece - pointers[owner] + 1) * TRITON_PIECE_EDGES
            node = torch.cat([node, owner])
            start = torch.cat([start, torch.where(is_used, start[owner] + offset, num_edges)])
        stop = torch.minimum(start + TRITON_PIECE_EDGES, first[1:][node])
        tensors = {
            "item_node": node,
            "item_start": start,
            "item_stop": stop,
            "across": across,
            "edge": edge,
        }
        return cls(num_nodes, len(node), tensors, pointers)


_ITEMS: WeakKeyDictionary[Graph, dict[str, Items]] = WeakKeyDictionary()


def items_of(graph: Graph, end: End) -> Items:
    """The items of a graph, made when first needed and kept as long as the graph."""
    made = _ITEMS.setdefault(graph, {})
    if end not in made:
        edge = graph.receiver_order
        if edge is None:
            edge = torch.arange(graph.num_edges, device=graph.device)
        if end == "receiver":
            made[end] = Items.of_edges(graph.receiver_pointers, graph.sorted_src, edge)
        else:
            order = graph.sender_order
            made[end] = Items.of_edges(graph.sender_pointers, graph.sorted_dst[order], edge[order])
    return made[end]


def keep_items(graph: Graph, end: End, items: Items) -> None:
    """What `items_of` is to return."""
    _ITEMS.setdefault(graph, {})[end] = items
