"""Graph: orders, pointers, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eqtp.graph import Graph


def test_receiver_order_sorts_stably() -> None:
    graph = Graph(torch.tensor([4, 1, 2, 3]), torch.tensor([2, 0, 2, 0]), 5)
    assert graph.receiver_order is not None
    assert graph.receiver_order.tolist() == [1, 3, 0, 2]
    assert graph.sorted_dst.tolist() == [0, 0, 2, 2]
    assert graph.sorted_src.tolist() == [1, 3, 4, 2]
    assert graph.receiver_pointers.tolist() == [0, 2, 2, 4, 4, 4]


def test_sorted_edges_need_no_order() -> None:
    graph = Graph(torch.tensor([1, 0, 2]), torch.tensor([0, 1, 1]), 3)
    assert graph.receiver_order is None
    assert graph.sorted_src is graph.edge_src
    assert graph.num_dst == 3


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_pointers_and_orders_of_random_graphs(dtype: torch.dtype) -> None:
    src, dst = torch.randint(0, 7, (50,), dtype=dtype), torch.randint(0, 4, (50,), dtype=dtype)
    graph = Graph(src, dst, 7, 4)
    for node in range(4):
        begin, end = graph.receiver_pointers[node : node + 2].tolist()
        assert (graph.sorted_dst[begin:end] == node).all()
        assert end - begin == int((dst == node).sum())
    by_sender = graph.sorted_src[graph.sender_order]
    for node in range(7):
        begin, end = graph.sender_pointers[node : node + 2].tolist()
        assert (by_sender[begin:end] == node).all()
        assert end - begin == int((src == node).sum())


def test_bipartite_empty_and_isolated() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    graph = Graph(empty, empty, 3, 2)
    assert graph.num_edges == 0
    assert graph.receiver_pointers.tolist() == [0, 0, 0]
    assert graph.sender_pointers.tolist() == [0, 0, 0, 0]
    assert graph.receiver_order is None
    assert Graph(empty, empty, 0).num_dst == 0
    assert repr(Graph(torch.tensor([0]), torch.tensor([1]), 1, 2)) == "Graph(1 edges, 1 -> 2 nodes)"


ONE = torch.zeros(1, dtype=torch.int64)
BAD: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "float": ((ONE.double(), ONE, 1), TypeError, "edge_src must be an int32 or int64 tensor"),
    "list": ((ONE, [0], 1), TypeError, "edge_dst must be an int32 or int64 tensor, got list"),
    "shape": ((ONE, torch.zeros(2, dtype=torch.int64), 1), ValueError, "of one length"),
    "matrix": ((ONE[None], ONE[None], 1), ValueError, "must be one-dimensional"),
    "dtypes": ((ONE, ONE.int(), 1), TypeError, "must share dtype and device"),
    "src": ((ONE + 3, ONE, 3), ValueError, r"edge_src must hold node indices in \[0, 3\)"),
    "dst": ((ONE, ONE + 2, 3, 2), ValueError, r"edge_dst must hold node indices in \[0, 2\)"),
    "negative": ((ONE - 1, ONE, 3), ValueError, "got values from -1 to -1"),
    "numbers": ((ONE, ONE, -1), ValueError, "must not be negative"),
}


@pytest.mark.parametrize("name", BAD)
def test_rejects_bad_edges(name: str) -> None:
    arguments, error, message = BAD[name]
    with pytest.raises(error, match=message):
        Graph(*arguments)
