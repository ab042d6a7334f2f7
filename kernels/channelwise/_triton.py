"""The channelwise product as Triton kernels: what `_program` says, one node per program.

A pass walks the edges of each node, receiver or sender, in a fixed order; the sums that belong to
the node stay in registers and are written once. Gradients that belong to an edge are written by
the pass that is there. Nothing is atomic, so results are the same from run to run.

    for every node (or piece of a node with many edges) and block of channels, in parallel
      for every edge of the node
        load y (scalars), x or g of the other end, w; the path's statements, path after path
        store what belongs to the edge
      store what belongs to the node

* Kernels. A pass is split into kernels of a few paths each, so that none spills registers
  (`config.triton_launch`). Paths that read the same block of x1 stay together: it is then loaded
  once. A kernel that meets a sum which an earlier one has begun goes on from there; kernels of a
  stream run in order.
* Pieces. Edges beyond the first `TRITON_PIECE_EDGES` of a node are further items of work, whose
  sums go to rows behind those of the nodes and are added to them in order. Items are made on the
  device, once per graph; their number is bounded by shapes, so nothing waits for the device.
* Gradient in y. A program has `channels` channels of an edge and writes their sum to a slot of its
  own, [rows, slots, dim2]; torch adds the slots. One program for all channels would need the sum
  over its warps through shared memory, with two barriers per edge; the slots are a few per cent of
  the weights' traffic.
* Shared weights. A fixed number of programs strides over the items, each sums the gradient of the
  weights in a row of its own, and torch adds the rows.

Sums are kept in the type of the arithmetic: float64 for float64, else float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.channelwise._program import FIRST_ORDER, LIKE, SECOND_ORDER
from eqtp.kernels.channelwise._triton_items import Items, items_of
from eqtp.kernels.channelwise._triton_radial import (
    radial_backward,
    radial_double_backward,
    radial_forward,
)
from eqtp.kernels.channelwise._triton_source import (
    FUNCTION,
    SUM_PIECES,
    SUM_PIECES_FUNCTION,
    End,
    Kernel,
)
from eqtp.kernels.channelwise.config import (
    TRITON_SHARED_PROGRAMS,
    TritonLaunch,
    triton_launch,
)
from eqtp.kernels.codegen.groups import balanced
from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.codegen.triton_device import ARITHMETIC, TRITON_NAME, lanes_of
from eqtp.problem import TensorProductProblem

__all__ = [
    "Pass",
    "backward",
    "double_backward",
    "forward",
    "radial_backward",
    "radial_double_backward",
    "radial_forward",
    "why_unsupported",
]


def why_unsupported(problem: TensorProductProblem, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot serve a product; None where they can."""
    if dtype not in ARITHMETIC:
        return f"its kernels are for {', '.join(map(str, ARITHMETIC))}, got {dtype}"
    return None


def forward(
    x: Tensor, y: Tensor, w: Tensor | None, problem: TensorProductProblem, graph: Graph | None
) -> Tensor:
    """The messages summed at receivers, or the products of rows: [num_dst or rows, dim_out]."""
    return _Call(problem, graph, {"x": x, "y": y, "w": w}).run("receiver", ["out"])["out"]


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
    call = _Call(problem, graph, {"x": x, "y": y, "w": w, "g": g})
    wanted = [FIRST_ORDER[slot] for slot, need in zip("xyw", needs, strict=True) if need]
    # Without the gradient in x the rows of g, the widest, are better walked node by node.
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of sum_a v_a d/da sum(g * forward(x, y, w)) in g, x, y and w.

    An absent direction (None) costs nothing.
    """
    operands = {"x": x, "y": y, "w": w, "g": g, "vx": v_x, "vy": v_y, "vw": v_w}
    call = _Call(problem, graph, operands)
    wanted = {slot: SECOND_ORDER[slot] for slot, need in zip("gxyw", needs, strict=True) if need}
    # The gradient in w shares its products with that in g, the gradient in y with that in x.
    at_receiver = [wanted[slot] for slot in "gw" if slot in wanted]
    at_sender = [wanted[slot] for slot in "xy" if slot in wanted]
    if "g" in wanted and "x" in wanted:
        results = call.run("receiver", at_receiver) | call.run("sender", at_sender)
    else:
        end: End = "sender" if "x" in wanted else "receiver"
        results = call.run(end, [*at_receiver, *at_sender])
    grad_g, grad_x, grad_y, grad_w = (results.get(SECOND_ORDER[slot]) for slot in "gxyw")
    return grad_g, grad_x, grad_y, grad_w


@dataclass(frozen=True)
class Pass:
    """One walk over the edges, as kernels.

    Attributes:
        problem: The product.
        end: The end of the edges that is walked.
        operands: Names of the operands that are given.
        results: Names of the results.
        shared: Whether one row of weights serves all edges.
        rows: Whether rows stand for edges and nodes alike.
        arithmetic: float32 or float64.
        lanes: Threads of a warp.
    """

    problem: TensorProductProblem
    end: End
    operands: tuple[str, ...]
    results: tuple[str, ...]
    shared: bool
    rows: bool
    arithmetic: torch.dtype
    lanes: int

    @cached_property
    def launch(self) -> TritonLaunch:
        """How the kernels are launched, and what they may hold."""
        return triton_launch(self.arithmetic.itemsize, self.lanes)

    @cached_property
    def slots(self) -> int:
        """Blocks of channels of the widest path."""
        widest = max(int(self.problem.irreps_in1[path.i_in1].mul) for path in self.problem.paths)
        return max(1, -(-widest // self.launch.channels))

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels in the order in which they run."""
        kernels: list[Kernel] = []
        begun: set[str] = set()
        for paths in balanced(self._greedy_parts):
            kernel = replace(self._kernel(paths), begun=frozenset(begun))
            begun |= set(kernel.sums)
            kernels.append(kernel)
        return tuple(kernels)

    @cached_property
    def covered(self) -> dict[str, bool]:
        """Whether every column of a result is written by some kernel."""
        blocks = {name: set[int]() for name in self.results}
        for kernel in self.kernels:
            for number, program in kernel.programs:
                path = self.problem.paths[number]
                block = {"x": path.i_in1, "y": path.i_in2, "g": path.i_out, "w": number}
                for statement in program.statements:
                    if statement.target.name in blocks:
                        blocks[statement.target.name].add(block[LIKE[statement.target.name]])
        full = {
            "x": {i for i, (mul, _) in enumerate(self.problem.irreps_in1) if mul > 0},
            "g": {i for i, (mul, _) in enumerate(self.problem.irreps_out) if mul > 0},
            "w": {i for i, path in enumerate(self.problem.paths) if path.weight_numel > 0},
        }
        return {name: LIKE[name] != "y" and blocks[name] >= full[LIKE[name]] for name in blocks}

    def _greedy_parts(self, share: float) -> list[tuple[int, ...]]:
        """Paths in groups of one multiplicity, filled one after the other."""
        in1, paths = self.problem.irreps_in1, self.problem.paths
        numbers = [number for number, path in enumerate(paths) if in1[path.i_in1].mul > 0]
        numbers.sort(key=lambda number: (in1[paths[number].i_in1].mul, paths[number].i_in1))
        parts: list[tuple[int, ...]] = []
        for number in numbers:
            if not self._kernel((number,)).programs:
                continue
            if parts and self._fits((*parts[-1], number), share):
                parts[-1] = (*parts[-1], number)
            else:
                parts.append((number,))
        return parts

    def _fits(self, numbers: tuple[int, ...], share: float) -> bool:
        in1, paths = self.problem.irreps_in1, self.problem.paths
        if len({in1[paths[number].i_in1].mul for number in numbers}) > 1:
            return False
        kernel = self._kernel(numbers)
        return (
            kernel.num_kept <= share * self.launch.max_kept
            and kernel.num_products <= share * self.launch.max_products
        )

    def _kernel(self, paths: tuple[int, ...]) -> Kernel:
        return Kernel(
            problem=self.problem,
            paths=paths,
            end=self.end,
            operands=self.operands,
            results=self.results,
            begun=frozenset(),
            shared=self.shared,
            rows=self.rows,
            real=TRITON_NAME[self.arithmetic],
            channels=self.launch.channels,
            slots=self.slots,
        )


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
        self.like = self.operands["y"]
        self.rows = len(self.like)
        w = self.operands.get("w")
        self.shared = w is not None and w.shape[0] != self.rows

    def run(self, end: End, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Runs one pass; results that vanish for all operands come as zeros."""
        if not wanted:
            return {}
        plan = _make_pass(
            Pass(
                problem=self.problem,
                end=end,
                operands=tuple(self.operands),
                results=tuple(wanted),
                shared=self.shared,
                rows=self.graph is None,
                arithmetic=ARITHMETIC[self.like.dtype],
                lanes=lanes_of(self.like.device),
            )
        )
        items = Items.of_rows(self.rows) if self.graph is None else items_of(self.graph, end)
        programs = items.number
        if self.shared and any(LIKE[name] == "w" for name in wanted):
            programs = min(programs, TRITON_SHARED_PROGRAMS)
        results = {name: self._allocate(name, plan, items, programs) for name in wanted}
        if programs > 0:
            with torch.cuda.device_of(self.like):
                self._launch(plan, items, programs, results)
        return {name: self._finish(name, t, plan, items) for name, t in results.items()}

    def _launch(
        self, plan: Pass, items: Items, programs: int, results: Mapping[str, Tensor]
    ) -> None:
        launch = plan.launch
        options: dict[str, Any] = {
            "num_warps": launch.num_warps,
            "num_stages": launch.num_stages,
            "enable_fp_fusion": True,
        }
        tensors = {**self.operands, **results, **items.tensors}
        for kernel in plan.kernels:
            arguments = [tensors[name] for name in kernel.arguments[:-1]]
            grid = (programs, -(-kernel.mul // launch.channels))
            load_function(kernel.source, FUNCTION)[grid](*arguments, items.number, **options)
        for name, rows in results.items():
            if items.pointers is not None and self._is_at_node(name, plan.end):
                dim, block = rows.shape[1], 256
                grid = (items.num_nodes, -(-dim // block))
                function = load_function(SUM_PIECES, SUM_PIECES_FUNCTION)
                function[grid](
                    *(rows, items.pointers, items.num_nodes, dim),
                    BLOCK=block,
                    enable_fp_fusion=True,
                )

    def _is_at_node(self, name: str, end: End) -> bool:
        return LIKE[name] == ("g" if end == "receiver" else "x")

    def _allocate(self, name: str, plan: Pass, items: Items, programs: int) -> Tensor:
        """Memory for a result: zeros where some of it is not written by any kernel."""
        kind, rows, dtype = LIKE[name], self.rows, plan.arithmetic
        make = self.like.new_empty if plan.covered[name] and programs > 0 else self.like.new_zeros
        if kind == "y":
            return make(rows, plan.slots, self.problem.irreps_in2.dim, dtype=dtype)
        if kind == "w":
            if self.shared:
                return make(programs, self.problem.weight_numel, dtype=dtype)
            return make(rows, self.problem.weight_numel)
        irreps = self.problem.irreps_in1 if kind == "x" else self.problem.irreps_out
        return make(items.number, irreps.dim, dtype=dtype)

    def _finish(self, name: str, result: Tensor, plan: Pass, items: Items) -> Tensor:
        """Adds what different programs found, and goes back to the operands' dtype."""
        kind = LIKE[name]
        if kind == "y":
            result = result.sum(1) if plan.slots > 1 else result[:, 0]
        elif kind == "w" and self.shared:
            result = result.sum(0, keepdim=True)
        elif kind != "w":
            result = result[: items.num_nodes]
        return result.to(self.like.dtype)


@lru_cache(maxsize=1024)
def _make_pass(plan: Pass) -> Pass:
    """The same pass, made once: its kernels are worked out when first used."""
    return plan
