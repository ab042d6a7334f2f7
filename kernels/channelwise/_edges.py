"""A graph as the tensors that a kernel reads, and back.

Ops of `torch.library` take tensors. They are made once per graph and backend, outside of what is
compiled or by an op of their own inside of it, and their shapes follow from the graph's: nothing
in a compiled program depends on what the edges are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqtp.graph import EdgeOrder, Graph, SenderSums
from eqtp.kernels.channelwise.config import cpu_chunk_edges

__all__ = ["edge_tensors", "fake_edge_tensors", "graph_of"]


def edge_tensors(graph: Graph, backend: str) -> list[Tensor]:
    """Everything that a backend's kernels read of a graph."""
    if backend != "cpu":
        return [graph.edge_src, graph.edge_dst]
    row, rows, pointers = graph.sender_sums(cpu_chunk_edges(graph.num_edges))
    padded = row.new_zeros(graph.num_edges)  # at most one row per edge
    padded[: len(rows)] = rows
    return [graph.edge_src, graph.edge_dst, *graph.by_receiver, row, padded, pointers]


def fake_edge_tensors(
    edge_src: Tensor, edge_dst: Tensor, num_src: int, num_dst: int, backend: str
) -> list[Tensor]:
    """Tensors of the shapes of `edge_tensors`."""
    given = [torch.empty_like(edge_src), torch.empty_like(edge_dst)]
    if backend != "cpu":
        return given
    long = edge_src.new_empty(0, dtype=torch.int64)
    made = [long.new_empty(edge_src.shape[0]) for _ in range(5)]
    return [*given, *made, long.new_empty(num_src + 1)]


def graph_of(
    tensors: Sequence[Tensor], num_src: int, num_dst: int, backend: str
) -> Graph | None:
    """The graph whose `edge_tensors` these are; None, that is rows, if there are none."""
    if not tensors:
        return None
    graph = Graph.of_checked(tensors[0], tensors[1], num_src, num_dst)
    if backend == "cpu":
        receiver, sender, edge, row, padded, pointers = tensors[2:]
        rows = padded[: int(pointers[-1])]
        graph.by_receiver = EdgeOrder(receiver, sender, edge)
        chunk = cpu_chunk_edges(graph.num_edges)
        graph.keep_sender_sums(chunk, SenderSums(row, rows, pointers))
    return graph
