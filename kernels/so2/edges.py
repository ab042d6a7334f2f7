"""A graph as the tensors that the SO(2) kernels read: for each side, edges sorted by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.codegen.edges import DERIVED, Derived, edges_of

__all__ = ["Side", "side_of", "sides_of"]


class Side(NamedTuple):
    """One end of the edges, all int64.

    Attributes:
        node: The edges' nodes at this end, [E].
        edge: The edges sorted by that node, [E].
        pointers: Where each node's edges start in `edge`, [num_nodes + 1].
    """

    node: Tensor
    edge: Tensor
    pointers: Tensor


def sides_of(graph: Graph | None) -> list[Tensor]:
    """What the ops take as `edges`: both sides one after the other; nothing for rows."""
    return edges_of(graph, "so2")


def side_of(edges: Sequence[Tensor], at_receivers: bool) -> Side | None:
    """One side of the tensors of `sides_of`."""
    if not edges:
        return None
    first = 5 if at_receivers else 2
    return Side(*edges[first : first + 3])


def _make(graph: Graph) -> list[Tensor]:
    edge = graph.by_receiver.edge
    by_sender = edge.index_select(0, graph.sender_order)
    return [
        graph.edge_src.long().clone(),
        by_sender,
        graph.sender_pointers,
        graph.edge_dst.long().clone(),
        edge.clone(),
        graph.receiver_pointers,
    ]


def _shapes(
    dtype: torch.dtype, num_edges: int, num_src: int, num_dst: int
) -> list[tuple[int, torch.dtype]]:
    sizes = [num_edges, num_edges, num_src + 1, num_edges, num_edges, num_dst + 1]
    return [(size, torch.int64) for size in sizes]


DERIVED["so2"] = Derived(_make, _shapes, lambda graph, made: None)
