"""Work of the Triton kernels' programs: nodes, and pieces of nodes with many edges.

Made on the device, once per graph; the number of items is bounded by shapes, so that nothing waits
for the device. Ops are given them as tensors, see `edges`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.codegen.edges import DERIVED, Derived
from eqtp.kernels.codegen.triton import load_function

__all__ = ["End", "Items", "items_of"]

End = Literal["receiver", "sender"]
"""The end of the edges whose nodes are the items; the other end is "across"."""

PIECE_EDGES = 256
"""Edges of a node that one program walks. Twice the neighbours within 6 Å in diamond, a dense
crystal, so that only hubs are split; the rows of the pieces take at most dim_out / 256 per edge."""

SUM_PIECES_FUNCTION = "sum_pieces"

SUM_PIECES = '''\
@triton.jit(do_not_specialize=["num_nodes", "dim"])
def sum_pieces(rows, pointers, num_nodes, dim, BLOCK: tl.constexpr):
    """Adds the rows after the first num_nodes to those of their nodes, in order."""
    node = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    piece = tl.load(pointers + node)
    stop = tl.load(pointers + node + 1)
    if piece < stop:
        total = tl.load(rows + node * dim + column, mask=column < dim)
        while piece < stop:
            total += tl.load(rows + (num_nodes + piece) * dim + column, mask=column < dim)
            piece += 1
        tl.store(rows + node * dim + column, total, mask=column < dim)
'''


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
        num_pieces = num_edges // PIECE_EDGES  # at least sum((edges - 1) // PIECE_EDGES)
        if num_pieces > 0:
            further = (first.diff() - 1).clamp(min=0) // PIECE_EDGES
            pointers = torch.nn.functional.pad(further.cumsum(0), (1, 0))
            piece = torch.arange(num_pieces, device=first.device)
            owner = torch.searchsorted(pointers, piece, right=True) - 1
            is_used = owner < num_nodes
            owner = owner.clamp(max=num_nodes - 1)
            offset = (piece - pointers[owner] + 1) * PIECE_EDGES
            node = torch.cat([node, owner])
            start = torch.cat([start, torch.where(is_used, start[owner] + offset, num_edges)])
        stop = torch.minimum(start + PIECE_EDGES, first[1:][node])
        tensors = {
            "item_node": node,
            "item_start": start,
            "item_stop": stop,
            "across": across,
            "edge": edge,
        }
        return cls(num_nodes, len(node), tensors, pointers)

    def add_pieces(self, rows: Tensor) -> None:
        """Adds the further pieces' rows of a result to those of their nodes, in order."""
        if self.pointers is None:
            return
        dim, block = rows.shape[1], 256
        load_function(SUM_PIECES, SUM_PIECES_FUNCTION)[(self.num_nodes, -(-dim // block))](
            *(rows, self.pointers, self.num_nodes, dim), BLOCK=block, enable_fp_fusion=True
        )


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


_NAMES = ("item_node", "item_start", "item_stop", "across", "edge")
_ENDS: tuple[End, End] = ("receiver", "sender")


def _make(graph: Graph) -> list[Tensor]:
    tensors = []
    for end in _ENDS:
        items = items_of(graph, end)
        tensors += [items.tensors[name] for name in _NAMES]
        none = items.tensors["edge"].new_zeros(items.num_nodes + 1)
        tensors.append(none if items.pointers is None else items.pointers)
    return tensors


def _shapes(
    dtype: torch.dtype, num_edges: int, num_src: int, num_dst: int
) -> list[tuple[int, torch.dtype]]:
    shapes = []
    for num_nodes in (num_dst, num_src):
        number = num_nodes + num_edges // PIECE_EDGES
        shapes += [(number, torch.int64)] * 3
        shapes += [(num_edges, dtype), (num_edges, torch.int64), (num_nodes + 1, torch.int64)]
    return shapes


def _restore(graph: Graph, made: list[Tensor]) -> None:
    for index, end in enumerate(_ENDS):
        *tensors, pointers = made[6 * index : 6 * (index + 1)]
        num_nodes, number = len(pointers) - 1, len(tensors[0])
        _ITEMS.setdefault(graph, {})[end] = Items(
            num_nodes,
            number,
            dict(zip(_NAMES, tensors, strict=True)),
            pointers if number > num_nodes else None,
        )


DERIVED["triton"] = Derived(_make, _shapes, _restore)
