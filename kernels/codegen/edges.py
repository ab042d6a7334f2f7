"""A graph as the tensors that kernels read, and back: ops of `torch.library` take no graphs.

The tensors are made once per graph and kind of kernel, outside of what is compiled or by an op of
their own inside of it. Their shapes follow from the graph's, so that a compiled program depends
neither on what the edges are nor on how many.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqtp.graph import EdgeOrder, Graph, SenderSums
from eqtp.operators import register

__all__ = ["chunk_edges", "edges_of", "graph_of"]


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
    graph = Graph.of_checked(edges[0], edges[1], num_src, num_dst)
    if backend == "cpu":
        receiver, sender, edge, row, rows, pointers = edges[2:]
        graph.by_receiver = EdgeOrder(receiver, sender, edge)
        sums = SenderSums(row, rows[: int(pointers[-1])], pointers)
        graph.keep_sender_sums(chunk_edges(len(row)), sums)
    return graph


def _make(graph: Graph, backend: str) -> list[Tensor]:
    if backend != "cpu":
        return [graph.edge_src, graph.edge_dst]
    row, rows, pointers = graph.sender_sums(chunk_edges(graph.num_edges))
    padded = row.new_zeros(graph.num_edges)  # at most one row per edge
    padded[: len(rows)] = rows
    return [graph.edge_src, graph.edge_dst, *graph.by_receiver, row, padded, pointers]


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
    given = [torch.empty_like(edge_src), torch.empty_like(edge_dst)]
    if backend != "cpu":
        return given
    made = [edge_src.new_empty(edge_src.shape, dtype=torch.int64) for _ in range(5)]
    return [*given, *made, edge_src.new_empty(num_src + 1, dtype=torch.int64)]


register(
    "edges",
    "(Tensor edge_src, Tensor edge_dst, SymInt num_src, SymInt num_dst, str backend) -> Tensor[]",
    _compute,
    _fake,
)
