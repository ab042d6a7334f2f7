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
* Pieces. Edges beyond the first `PIECE_EDGES` of a node are further items of work, whose
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
from eqtp.kernels.channelwise import _triton_radial
from eqtp.kernels.channelwise._program import LIKE
from eqtp.kernels.channelwise._triton_call import Call, Plan
from eqtp.kernels.channelwise._triton_source import FUNCTION, Kernel
from eqtp.kernels.channelwise.config import (
    TRITON_SHARED_PROGRAMS,
    TritonLaunch,
    triton_launch,
)
from eqtp.kernels.codegen.groups import balanced
from eqtp.kernels.codegen.triton_device import ARITHMETIC, TRITON_NAME, lanes_of, why_not_dtype
from eqtp.kernels.codegen.triton_items import End
from eqtp.problem import TensorProductProblem

__all__ = ["Pass", "run", "why_unsupported"]


def why_unsupported(problem: TensorProductProblem, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot serve a product; None where they can."""
    return why_not_dtype(dtype)


def run(
    problem: TensorProductProblem,
    graph: Graph | None,
    operands: Mapping[str, Tensor],
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """Computes results, see `_ops`."""
    if "h" in operands:
        return _triton_radial.run(problem, graph, operands, wanted)
    call = _Call(problem, graph, operands)
    if "grad_g2" in wanted and "grad_x2" in wanted:
        # The gradient in w shares its products with that in g, the gradient in y with that in x.
        at_receiver = [name for name in wanted if LIKE[name] in "gw"]
        at_sender = [name for name in wanted if LIKE[name] in "xy"]
        return call.run("receiver", at_receiver) | call.run("sender", at_sender)
    # Without the gradient in x the rows of g, the widest, are better walked node by node.
    is_at_sender = any(LIKE[name] == "x" for name in wanted)
    return call.run("sender" if is_at_sender else "receiver", wanted)


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

    @property
    def function(self) -> str:
        """Name of the kernels' function."""
        return FUNCTION

    @property
    def edges(self) -> int:
        """Edges that a program takes at a time."""
        return 1

    @cached_property
    def options(self) -> dict[str, Any]:
        """The compiler's options."""
        warps_and_stages = {
            "num_warps": self.launch.num_warps,
            "num_stages": self.launch.num_stages,
        }
        return {**warps_and_stages, "enable_fp_fusion": True}

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


class _Call(Call):
    """A call with weights."""

    def plan(self, end: End, results: tuple[str, ...]) -> Pass:
        """The pass that computes results."""
        return _make_pass(
            Pass(
                problem=self.problem,
                end=end,
                operands=tuple(self.operands),
                results=results,
                shared=self.shared,
                rows=self.graph is None,
                arithmetic=ARITHMETIC[self.like.dtype],
                lanes=lanes_of(self.like.device),
            )
        )

    def max_programs(self, plan: Plan) -> int:
        """Programs that stride over the items where each keeps a sum of its own."""
        return TRITON_SHARED_PROGRAMS


@lru_cache(maxsize=1024)
def _make_pass(plan: Pass) -> Pass:
    """The same pass, made once: its kernels are worked out when first used."""
    return plan
