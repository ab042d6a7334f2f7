"""The channelwise product as generated C++: what `_program` says, for tiles of edges.

One pass over the edges, sorted by receiver, computes any results that are asked for together:

    for every chunk of edges, in parallel
      for every tile of edges of the chunk
        for every path
          M[i, k] for all edges of the tile           lanes are edges
          for every vector of channels                lanes are channels
            for every receiver in the tile            its rows and sums stay in registers
              for every one of its edges              the path's statements

Nothing is atomic. Chunks are a property of the edges, not of the threads, so results are the same
from run to run and for any number of threads, and a node with thousands of edges is shared by many:
a receiver whose edges started in an earlier chunk is summed into a row of the chunk's own
(`carry`), and those are added in order at the end. Sums at senders (gradients in x1) are made in
the same way (`Graph.sender_sums`): the rows of x1 are narrow, those of the result wide, and walking
the edges a second time by sender would read a wide row for every edge.

Weights may come as h m, from the hidden features h of a radial network and its last matrix m: a
tile computes those of one path, uses them, and turns their gradients into gradients of h and m, all
in the cache. The weights of 158,000 edges of a large MACE would take 1.4 GB.

Everything is in "ir_mul" layout; several paths may add to one block of the result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.graph import EdgeOrder, Graph, SenderSums
from eqtp.kernels.channelwise._cpu_pass import Pass
from eqtp.kernels.channelwise._cpu_source import source
from eqtp.kernels.channelwise._program import LIKE
from eqtp.kernels.channelwise.config import CPU_RADIAL_TILE, CPU_TILE
from eqtp.kernels.codegen import memory
from eqtp.kernels.codegen.compiler import load_generated
from eqtp.kernels.codegen.edges import chunk_edges
from eqtp.problem import TensorProductProblem

__all__ = ["run"]


def run(
    problem: TensorProductProblem,
    graph: Graph | None,
    operands: Mapping[str, Tensor],
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """Computes results, see `_ops`."""
    y, w, h = operands["y"], operands.get("w"), operands.get("h")
    hidden = 0 if h is None else h.shape[1]
    num_edges = y.shape[0]
    shared = w is not None and w.shape[0] != num_edges
    chunk = chunk_edges(num_edges)
    num_chunks = -(-num_edges // chunk)
    nodes = (num_edges, num_edges) if graph is None else (graph.num_src, graph.num_dst)
    dim1, dim2, weight_numel, dim_out = problem.dims
    shapes = {
        "x": (nodes[0], dim1),
        "y": (num_edges, dim2),
        "w": (num_chunks if shared else num_edges, weight_numel),
        "g": (nodes[1], dim_out),
        "h": (num_edges, hidden),
        "m": (num_chunks, hidden, weight_numel),
    }
    summed = {"m", "w"} if shared else {"m"}  # results that kernels add to
    results = {
        name: y.new_zeros(shapes[LIKE[name]])
        if LIKE[name] in summed
        else memory.empty(y, *shapes[LIKE[name]])
        for name in wanted
    }
    if not results:
        return {}
    tile = CPU_RADIAL_TILE if hidden else CPU_TILE
    kernel_pass = Pass(problem, tuple(operands), tuple(results), shared, y.dtype, tile, hidden)
    order = _edge_order(graph, num_edges)
    sums = _sender_sums(graph, num_edges, chunk if "x" in map(LIKE.get, results) else None)
    carry = y.new_zeros(num_chunks, dim_out)
    partial = y.new_zeros(len(sums.rows), dim1)
    turned = [operands[name].t().contiguous() for name in kernel_pass.turned]
    tensors = (*operands.values(), *results.values(), *turned, *order, *sums, carry, partial)
    _kernel(kernel_pass)(
        (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors)),
        (ctypes.c_int64 * 4)(num_edges, chunk, *nodes),
        torch.get_num_threads(),
    )
    for name in results:
        if LIKE[name] == "m" or (LIKE[name] == "w" and shared):  # one part per chunk
            results[name] = results[name].sum(0, keepdim=LIKE[name] == "w")
    return results


def _edge_order(graph: Graph | None, num_edges: int) -> EdgeOrder:
    """The order of the edges; a product of rows is a graph of edges that share no node."""
    if graph is not None:
        return graph.by_receiver
    index = torch.arange(num_edges)
    return EdgeOrder(index, index, index)


def _sender_sums(graph: Graph | None, num_edges: int, chunk: int | None) -> SenderSums:
    """How sums at senders are made; nothing where there are none (chunk None)."""
    if graph is not None and chunk is not None:
        return graph.sender_sums(chunk)
    index = torch.arange(num_edges + 1 if chunk is not None else 0)
    return SenderSums(index[:-1], index[:-1], index)


@lru_cache(maxsize=1024)
def _kernel(kernel_pass: Pass) -> Callable[..., None]:
    """The compiled function of a pass."""
    function = load_generated(repr(kernel_pass), lambda: source(kernel_pass)).run
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    function.restype = None
    return function
