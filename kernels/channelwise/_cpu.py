"""The channelwise product as generated C++: what `_program` says, for tiles of edges.

A pass walks the edges in the order of one of their ends (`EdgeOrder`), which thereby is the node
whose rows stay in registers while its edges go by: the receiver where results are summed at
receivers (value, second gradient in g), the sender where they are summed at senders (gradients in
x). Gradients that belong to an edge are written by whichever pass is there. Nothing is atomic.

    for every chunk of edges, in parallel
      for every tile of TILE edges of the chunk
        for every path
          M[i, k] for all edges of the tile           lanes are edges
          for every vector of channels                lanes are channels
            for every node of the tile
              for every edge of the node              the path's statements
              add the sums to the node's row

Chunks are a property of the graph, not of the threads: a node whose edges started in an earlier
chunk is summed into a row of the chunk's own (`carry`), and those rows are added in order at the
end. So results are the same from run to run and for any number of threads, and a node with
thousands of edges is shared by many.

Everything is in "ir_mul" layout; several paths may add to one block of the result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.graph import EdgeOrder, Graph
from eqtp.kernels.channelwise._cpu_source import LIKE, End, Pass
from eqtp.kernels.channelwise._program import FIRST_ORDER, SECOND_ORDER
from eqtp.kernels.channelwise.config import CPU_TILE, cpu_chunk_edges
from eqtp.kernels.codegen.compiler import load_library
from eqtp.problem import TensorProductProblem

__all__ = ["backward", "double_backward", "forward"]

def forward(
    x: Tensor, y: Tensor, w: Tensor | None, problem: TensorProductProblem, graph: Graph | None
) -> Tensor:
    """The messages summed at receivers, or the products of rows."""
    call = _Call(problem, graph, {"x": x, "y": y, "w": w})
    return call.run("receiver", ["out"])["out"]


def backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    problem: TensorProductProblem,
    graph: Graph | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of sum(g * forward(x, y, w)) in x, y and w, those that are needed."""
    call = _Call(problem, graph, {"g": g, "x": x, "y": y, "w": w})
    wanted = [FIRST_ORDER[slot] for slot, need in zip("xyw", needs, strict=True) if need]
    results = call.run("sender" if needs[0] else "receiver", wanted)
    grad_x, grad_y, grad_w = (results.get(FIRST_ORDER[slot]) for slot in "xyw")
    return grad_x, grad_y, grad_w


def double_backward(
    v_x: Tensor | None,
    v_y: Tensor | None,
    v_w: Tensor | None,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    problem: TensorProductProblem,
    graph: Graph | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of sum_a v_a d/da sum(g * forward(x, y, w)) in g, x, y and w."""
    operands = {"g": g, "x": x, "y": y, "w": w, "vx": v_x, "vy": v_y, "vw": v_w}
    call = _Call(problem, graph, operands)
    wanted = {slot: SECOND_ORDER[slot] for slot, need in zip("gxyw", needs, strict=True) if need}
    # The gradient in w shares its products with that in g, the gradient in y with that in x.
    at_receiver = [wanted[slot] for slot in "gw" if slot in wanted]
    at_sender = [wanted[slot] for slot in "xy" if slot in wanted]
    if "g" not in wanted or "x" not in wanted:
        end: End = "receiver" if "x" not in wanted else "sender"
        results = call.run(end, [*at_receiver, *at_sender])
    else:
        results = call.run("receiver", at_receiver) | call.run("sender", at_sender)
    return tuple(results.get(SECOND_ORDER[slot]) for slot in "gxyw")


class _Call:
    """Operands of one call and the passes over them."""

    def __init__(
        self,
        problem: TensorProductProblem,
        graph: Graph | None,
        operands: Mapping[str, Tensor | None],
    ) -> None:
        self.problem = problem
        self.graph = graph
        self.operands = {name: t for name, t in operands.items() if t is not None}
        self.rows = self.operands["y"].shape[0]
        w = self.operands.get("w")
        self.shared = w is not None and w.shape[0] != self.rows

    def run(self, end: End, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Runs one pass; results that are zero for all operands come as zeros."""
        if not wanted:
            return {}
        like = self.operands["y"]
        chunk = cpu_chunk_edges(self.rows)
        num_chunks = -(-self.rows // chunk)
        results = {name: self._allocate(name, num_chunks) for name in wanted}
        if self.rows > 0:
            node_columns = self.problem.irreps_out if end == "receiver" else self.problem.irreps_in1
            carry = like.new_zeros(num_chunks, node_columns.dim)
            names = tuple(self.operands)
            kernel = _kernel(
                Pass(self.problem, end, names, tuple(wanted), self.shared, like.dtype, CPU_TILE)
            )
            tensors = (*self.operands.values(), *results.values(), *self._order(end), carry)
            pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
            kernel(pointers, self.rows, chunk, torch.get_num_threads())
        for name in wanted:
            if LIKE[name] == "w" and self.shared:
                results[name] = results[name].sum(0, keepdim=True)
        return results

    def _order(self, end: End) -> EdgeOrder:
        if self.graph is None:
            index = torch.arange(self.rows)
            return EdgeOrder(index, index, index)
        return self.graph.by_receiver if end == "receiver" else self.graph.by_sender

    def _allocate(self, name: str, num_chunks: int) -> Tensor:
        """Memory for a result: zeros where a kernel adds to it or leaves some of it out."""
        like = self.operands["y"]
        in1, in2, out = (
            self.problem.irreps_in1,
            self.problem.irreps_in2,
            self.problem.irreps_out,
        )
        kind = LIKE[name]
        if kind == "w":
            numel = self.problem.weight_numel
            if self.shared:
                return like.new_zeros(num_chunks, numel)
            return like.new_empty(self.rows, numel)
        if kind == "y":
            return like.new_empty(self.rows, in2.dim)
        graph = self.graph
        nodes = self.rows
        if graph is not None:
            nodes = graph.num_src if kind == "x" else graph.num_dst
        return like.new_zeros(nodes, in1.dim if kind == "x" else out.dim)


@lru_cache(maxsize=1024)
def _kernel(kernel_pass: Pass) -> Callable[..., None]:
    """The compiled function of a pass."""
    function = load_library(kernel_pass.source).run
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    function.restype = None
    return function
