"""The items of the Triton kernels as tensors that ops are given, see `codegen.edges`."""

from __future__ import annotations

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.channelwise._triton_items import Items, items_of, keep_items
from eqtp.kernels.channelwise._triton_source import End
from eqtp.kernels.channelwise.config import TRITON_PIECE_EDGES
from eqtp.kernels.codegen.edges import DERIVED, Derived

NAMES = ("item_node", "item_start", "item_stop", "across", "edge")
ENDS: tuple[End, End] = ("receiver", "sender")


def _make(graph: Graph) -> list[Tensor]:
    tensors = []
    for end in ENDS:
        items = items_of(graph, end)
        tensors += [items.tensors[name] for name in NAMES]
        none = items.tensors["edge"].new_zeros(items.num_nodes + 1)
        tensors.append(none if items.pointers is None else items.pointers)
    return tensors


def _shapes(
    dtype: torch.dtype, num_edges: int, num_src: int, num_dst: int
) -> list[tuple[int, torch.dtype]]:
    shapes = []
    for num_nodes in (num_dst, num_src):
        number = num_nodes + num_edges // TRITON_PIECE_EDGES
        shapes += [(number, torch.int64)] * 3
        shapes += [(num_edges, dtype), (num_edges, torch.int64), (num_nodes + 1, torch.int64)]
    return shapes


def _restore(graph: Graph, made: list[Tensor]) -> None:
    for index, end in enumerate(ENDS):
        *tensors, pointers = made[6 * index : 6 * (index + 1)]
        num_nodes, number = len(pointers) - 1, len(tensors[0])
        keep_items(
            graph,
            end,
            Items(
                num_nodes,
                number,
                dict(zip(NAMES, tensors, strict=True)),
                pointers if number > num_nodes else None,
            ),
        )


DERIVED["triton"] = Derived(_make, _shapes, _restore)
