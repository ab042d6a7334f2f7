"""A graph as the tensors that kernels read, and back: ops of `torch.library` take no graphs.

The tensors are made once per graph and kind of kernel, outside of what is compiled or by an op of
their own inside of it. Their shapes follow from the graph's, so that a compiled program depends
neither on what the edges are nor on how many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtp.graph import EdgeOrder, Graph, SenderSums
from eqtp.operators import register

__all__ = ["DERIVED", "Derived", "chunk_edges", "edges_of", "graph_of"]


def chunk_edges(num_edges: int) -> int:
    """Edges of a chunk of the C++ kernels: 4 to 32 chunks of whole tiles of 16, for any threads."""
    num_chunks = min(max(num_edges // 2048, 4), 32)
    return max(1, -(-num_edges // (num_chunks * 16))) * 16


def edges_of(graph: Graph | None, backend: str) -> list[Tensor]:
    """What an op takes as `edges`: everything that a backend's kernels read; nothing for rows."""
    if graph is None:
        return []
    if backend in graph.kept:
        return graph.kept[backend]
    if not torch.compiler.is_compiling():
        with torch._C._DisableFuncTorch():  # they outlive the transform that is running
            graph.kept[backend] = _make(graph, backend)
        return graph.kept[backend]
    made: list[Tensor] = torch.ops.eqtp.edges.default(
        graph.edge_src, graph.edge_dst, graph.num_src, graph.num_dst, backend
    )
    if not torch._C._are_functorch_transforms_active():
        graph.kept[backend] = made
    return made


def graph_of(edges: Sequence[Tensor], num_src: int, num_dst: int, backend: str) -> Graph | None:
    """The graph whose `edges_of` these are."""
    if not edges:
        return None
    src, dst, *made = edges
    graph = Graph.of_checked(src, dst, num_src, num_dst)
    if backend in DERIVED:
        DERIVED[backend].restore(graph, made)
    return graph


@dataclass(frozen=True)
class Derived:
    """What a backend's kernels read of a graph besides its edges.

    Attributes:
        make: The tensors of a graph.
        shapes: Their shapes and dtypes, for the edges' dtype, E, num_src and num_dst.
        restore: Hands the tensors to a graph, which then need not make them.
    """

    make: Callable[[Graph], list[Tensor]]
    shapes: Callable[[torch.dtype, int, int, int], list[tuple[int, torch.dtype]]]
    restore: Callable[[Graph, list[Tensor]], None]


def _make_orders(graph: Graph) -> list[Tensor]:
    row, rows, pointers = graph.sender_sums(chunk_edges(graph.num_edges))
    padded = row.new_zeros(graph.num_edges)  # at most one row per edge
    padded[: len(rows)] = rows
    return [*graph.by_receiver, row, padded, pointers]


def _shapes_of_orders(
    dtype: torch.dtype, num_edges: int, num_src: int, num_dst: int
) -> list[tuple[int, torch.dtype]]:
    return [*[(num_edges, torch.int64)] * 5, (num_src + 1, torch.int64)]


def _restore_orders(graph: Graph, made: list[Tensor]) -> None:
    receiver, sender, edge, row, rows, pointers = made
    graph.by_receiver = EdgeOrder(receiver, sender, edge)
    sums = SenderSums(row, rows[: int(pointers[-1])], pointers)
    graph.keep_sender_sums(chunk_edges(len(row)), sums)


DERIVED = {"cpu": Derived(_make_orders, _shapes_of_orders, _restore_orders)}
"""By backend; backends that are not here read the edges as they are."""


def _make(graph: Graph, backend: str) -> list[Tensor]:
    made = DERIVED[backend].make(graph) if backend in DERIVED else []
    return [graph.edge_src, graph.edge_dst, *made]


def _compute(
    edge_src: Tensor, edge_dst: Tensor, num_src: int, num_dst: int, backend: str
) -> list[Tensor]:
    """For a graph that was made while compiling: its edges are checked here."""
    tensors = _make(Graph(edge_src, edge_dst, num_src, num_dst), backend)
    given = {edge_src.data_ptr(), edge_dst.data_ptr()}
    return [t.clone() if t.data_ptr() in given else t for t in tensors]


def _fake(
    edge_src: Tensor, edge_dst: Tensor, num_src: int, num_dst: int, backend: str
) -> list[Tensor]:
    shapes: list[tuple[int, torch.dtype]] = []
    if backend in DERIVED:
        sizes = edge_src.shape[0], num_src, num_dst
        shapes = DERIVED[backend].shapes(edge_src.dtype, *sizes)
    made = [edge_src.new_empty(size, dtype=dtype) for size, dtype in shapes]
    return [torch.empty_like(edge_src), torch.empty_like(edge_dst), *made]


register(
    "edges",
    "(Tensor edge_src, Tensor edge_dst, SymInt num_src, SymInt num_dst, str backend) -> Tensor[]",
    _compute,
    _fake,
)
