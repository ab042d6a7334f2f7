"""The channelwise product with weights h m as Triton kernels: no weight is ever in memory.

As in `_triton` a program walks the edges of a node in a fixed order and nothing is atomic, but it
takes a tile of edges at a time:

    for every node (or piece of a node with many edges) and block of channels, in parallel
      for every tile of the node's edges
        for every path of the kernel
          w = h m, m's columns of the path and the channels      tensor cores, [edges, channels]
        for every path of the kernel
          the path's statements, values [edges, channels]
        for every path of the kernel
          grad_h += grad_w m^T, grad_m += h^T grad_w             tensor cores
        store what belongs to the edges
      add up the tile's rows, store what belongs to the node

Gradients in x and y take a pass of their own, those in h and m another: they share no products,
the latter need no weights, and a kernel that does less keeps its values in registers. A tile does
not cross nodes; a node's last tile is filled with zeros. Gradients in y and h have a slot for every
block of channels and are added by torch. Gradients in m stay in registers over all nodes of a
program: a fixed number of programs strides over the nodes, and torch adds what each has found.

In a product of rows, without a graph, a tile is of rows, each with nodes of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.channelwise._program import LIKE
from eqtp.kernels.channelwise._triton_call import Call, Plan
from eqtp.kernels.channelwise._triton_radial_source import FUNCTION, RadialKernel
from eqtp.kernels.channelwise.config import (
    TRITON_RADIAL_PROGRAMS,
    TritonRadialLaunch,
    triton_radial_launch,
)
from eqtp.kernels.codegen.triton_device import ARITHMETIC, TRITON_NAME, lanes_of
from eqtp.kernels.codegen.triton_items import End
from eqtp.problem import TensorProductProblem

__all__ = ["RadialPass", "run"]


def run(
    problem: TensorProductProblem,
    graph: Graph | None,
    operands: Mapping[str, Tensor],
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """Computes results with the weights h m, h [E, hidden] and m [hidden, weight_numel]."""
    call = _Call(problem, graph, operands)
    # Without the gradient in x the rows of g, the widest, are better walked node by node.
    end: End = "sender" if any(LIKE[name] == "x" for name in wanted) else "receiver"
    passes: tuple[tuple[End, str], ...] = (("receiver", "g"), (end, "xy"), ("receiver", "hm"))
    results: dict[str, Tensor] = {}
    for walked, slots in passes:
        results |= call.run(walked, [name for name in wanted if LIKE[name] in slots])
    return results


@dataclass(frozen=True)
class RadialPass:
    """One walk over the edges, as kernels.

    Attributes:
        problem: The product.
        end: The end of the edges that is walked.
        operands: Names of the operands that are given.
        results: Names of the results.
        hidden: Columns of h.
        rows: Whether rows stand for edges and nodes alike.
        arithmetic: float32 or float64.
        lanes: Threads of a warp.
        tf32: Whether one product of TF32 numbers is accurate enough.
    """

    problem: TensorProductProblem
    end: End
    operands: tuple[str, ...]
    results: tuple[str, ...]
    hidden: int
    rows: bool
    arithmetic: torch.dtype
    lanes: int
    tf32: bool

    @cached_property
    def launch(self) -> TritonRadialLaunch:
        """How the kernels are launched, and what they may hold."""
        return triton_radial_launch(self.arithmetic.itemsize, self.lanes, self.tf32)

    @property
    def function(self) -> str:
        """Name of the kernels' function."""
        return FUNCTION

    @property
    def edges(self) -> int:
        """Edges of a tile."""
        return self.launch.edges

    @cached_property
    def options(self) -> dict[str, Any]:
        """The compiler's options."""
        launch = self.launch
        limit = {} if launch.max_registers is None else {"maxnreg": launch.max_registers}
        warps_and_stages = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
        return {**warps_and_stages, **limit, "enable_fp_fusion": True}

    @cached_property
    def present(self) -> tuple[str, ...]:
        """The operands as the paths' programs know them."""
        names = [name for name in self.operands if LIKE[name] not in "hm"]
        return (*names, "w", *(("vw",) if {"vh", "vm"} & set(self.operands) else ()))

    @cached_property
    def computed(self) -> tuple[str, ...]:
        """The results as the paths' programs know them."""
        names = [name for name in self.results if LIKE[name] not in "hm"]
        if {"grad_h", "grad_m"} & set(self.results):
            names.append("grad_w")
        if {"grad_h2", "grad_m2"} & set(self.results):
            names.append("grad_w2")
        for result, direction in (("grad_h2", "vm"), ("grad_m2", "vh")):
            if result in self.results and direction in self.operands and "grad_w" not in names:
                names.append("grad_w")
        return tuple(names)

    @cached_property
    def slots(self) -> int:
        """Blocks of channels of the path that has most of them."""
        kernels = (self._kernel((number,)) for number in self._numbers)
        return max((-(-kernel.mul // kernel.channels) for kernel in kernels), default=1)

    @cached_property
    def kernels(self) -> tuple[RadialKernel, ...]:
        """The kernels in the order in which they run."""
        kernels: list[RadialKernel] = []
        begun: set[str] = set()
        for paths in self._parts():
            kernel = replace(self._kernel(paths), begun=frozenset(begun), slots=self.slots)
            begun |= {*kernel.sums, *kernel.hidden_sums}
            kernels.append(kernel)
        return tuple(kernels)

    @cached_property
    def covered(self) -> dict[str, bool]:
        """Whether every column of a result is written by some kernel."""
        in1, out = self.problem.irreps_in1, self.problem.irreps_out
        blocks: dict[str, set[int]] = {name: set() for name in self.results}
        for kernel in self.kernels:
            for result, _, number in kernel.sums.values():
                path = self.problem.paths[number]
                if LIKE[result] != "y":
                    blocks[result].add(path.i_in1 if LIKE[result] == "x" else path.i_out)
            for result, number, _ in kernel.matrix_sums.values():
                blocks[result].add(number)
        full = {
            "x": {i for i, (mul, _) in enumerate(in1) if mul > 0},
            "g": {i for i, (mul, _) in enumerate(out) if mul > 0},
            "m": {i for i, path in enumerate(self.problem.paths) if path.weight_numel > 0},
        }
        return {name: LIKE[name] in full and blocks[name] >= full[LIKE[name]] for name in blocks}

    @cached_property
    def _numbers(self) -> tuple[int, ...]:
        """The paths with statements; those that read a block of x1 follow one another."""
        in1, paths = self.problem.irreps_in1, self.problem.paths
        numbers = [
            number
            for number, path in enumerate(paths)
            if in1[path.i_in1].mul > 0 and self._kernel((number,)).programs
        ]
        return tuple(sorted(numbers, key=lambda n: (in1[paths[n].i_in1].mul, paths[n].i_in1)))

    def _parts(self) -> list[tuple[int, ...]]:
        """Paths in groups of one multiplicity, filled one after the other up to the limits."""
        parts: list[tuple[int, ...]] = []
        for number in self._numbers:
            if parts and self._fits((*parts[-1], number)):
                parts[-1] = (*parts[-1], number)
            else:
                parts.append((number,))
        return parts

    def _fits(self, numbers: tuple[int, ...]) -> bool:
        in1, paths = self.problem.irreps_in1, self.problem.paths
        if len({in1[paths[number].i_in1].mul for number in numbers}) > 1:
            return False
        kernel = self._kernel(numbers)
        return (
            kernel.num_kept <= self.launch.max_kept
            and kernel.num_products <= self.launch.max_products
        )

    def _kernel(self, paths: tuple[int, ...]) -> RadialKernel:
        return RadialKernel(
            problem=self.problem,
            paths=paths,
            end=self.end,
            operands=self.present,
            results=self.computed,
            begun=frozenset(),
            shared=False,
            rows=self.rows,
            real=TRITON_NAME[self.arithmetic],
            channels=self.launch.channels,
            slots=1,
            factors=tuple(name for name in self.operands if LIKE[name] in "hm"),
            gradients=tuple(name for name in self.results if LIKE[name] in "hm"),
            hidden=self.hidden,
            edges=self.launch.edges,
            precision=self.launch.precision,
        )


class _Call(Call):
    """A call with weights h m."""

    def plan(self, end: End, results: tuple[str, ...]) -> RadialPass:
        """The pass that computes results."""
        return _make_pass(
            RadialPass(
                problem=self.problem,
                end=end,
                operands=tuple(self.operands),
                results=results,
                hidden=self.hidden,
                rows=self.graph is None,
                arithmetic=ARITHMETIC[self.like.dtype],
                lanes=lanes_of(self.like.device),
                tf32=torch.get_float32_matmul_precision() != "highest",
            )
        )

    def max_programs(self, plan: Plan) -> int:
        """Programs that stride over the items where each keeps a sum of its own."""
        return max(1, TRITON_RADIAL_PROGRAMS // plan.slots)


@lru_cache(maxsize=1024)
def _make_pass(plan: RadialPass) -> RadialPass:
    """The same pass, made once: its kernels are worked out when first used."""
    return plan
