"""A call of the Triton kernels: memory, launches, and the sums of what different programs found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.channelwise._program import LIKE
from eqtp.kernels.channelwise._triton_source import Kernel
from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.codegen.triton_items import End, Items, items_of
from eqtp.problem import TensorProductProblem

__all__ = ["Call"]

_ORDER = (
    *("x", "y", "w", "g", "h", "m", "vx", "vy", "vw", "vh", "vm"),
    *("out", "grad_x", "grad_y", "grad_w", "grad_h", "grad_m"),
    *("grad_g2", "grad_w2", "grad_x2", "grad_y2", "grad_h2", "grad_m2"),
)
"""Operands and results in the order of the kernels' arguments."""


class Plan(Protocol):
    """One walk over the edges, as kernels."""

    @property
    def function(self) -> str:
        """Name of the kernels' function."""
        ...

    @property
    def end(self) -> End:
        """The end of the edges that is walked."""
        ...

    @property
    def arithmetic(self) -> torch.dtype:
        """float32 or float64."""
        ...

    @property
    def edges(self) -> int:
        """Edges that a program takes at a time."""
        ...

    @property
    def slots(self) -> int:
        """Most blocks of channels of a path: so many programs write gradients in y and h."""
        ...

    @property
    def kernels(self) -> Sequence[Kernel]:
        """The kernels in the order in which they run."""
        ...

    @property
    def covered(self) -> Mapping[str, bool]:
        """Whether every column of a result is written by some kernel."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """The compiler's options."""
        ...


class Call(ABC):
    """Operands of one call and the passes over them."""

    def __init__(
        self, problem: TensorProductProblem, graph: Graph | None, operands: Mapping[str, Tensor]
    ) -> None:
        self.problem = problem
        self.graph = graph
        self.operands = {name: operands[name] for name in _ORDER if name in operands}
        self.like = operands["y"]
        self.rows = len(self.like)
        self.shared = "w" in operands and operands["w"].shape[0] != self.rows
        self.hidden = operands["h"].shape[1] if "h" in operands else 0

    @abstractmethod
    def plan(self, end: End, results: tuple[str, ...]) -> Plan:
        """The pass that computes results."""

    @abstractmethod
    def max_programs(self, plan: Plan) -> int:
        """Programs that stride over the items where each keeps a sum of its own."""

    def run(self, end: End, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Runs one pass; results that vanish for all operands come as zeros."""
        if not wanted:
            return {}
        plan = self.plan(end, tuple(sorted(wanted, key=_ORDER.index)))
        items = (
            Items.of_rows(-(-self.rows // plan.edges))
            if self.graph is None
            else items_of(self.graph, plan.end)
        )
        programs = items.number
        if any(map(self._is_summed, wanted)):
            programs = min(programs, self.max_programs(plan))
        results = {name: self._allocate(name, plan, items, programs) for name in wanted}
        if programs > 0:
            with torch.cuda.device_of(self.like):
                self._launch(plan, items, programs, results)
        return {name: self._finish(name, t, plan, items) for name, t in results.items()}

    def _is_summed(self, name: str) -> bool:
        """Whether every program sums a result in a row of its own."""
        return LIKE[name] == "m" or (LIKE[name] == "w" and self.shared)

    def _launch(
        self, plan: Plan, items: Items, programs: int, results: Mapping[str, Tensor]
    ) -> None:
        numbers = {"num_items": items.number, "num_rows": self.rows, "num_hidden": self.hidden}
        values = {**self.operands, **results, **items.tensors, **numbers}
        for kernel in plan.kernels:
            arguments = [values[name] for name in kernel.arguments]
            grid = (programs, -(-kernel.mul // kernel.channels))
            load_function(kernel.source, plan.function)[grid](*arguments, **plan.options)
        at_node = "g" if plan.end == "receiver" else "x"
        for name, rows in results.items():
            if LIKE[name] == at_node:
                items.add_pieces(rows)

    def _allocate(self, name: str, plan: Plan, items: Items, programs: int) -> Tensor:
        """Memory for a result: zeros where some of it is not written by any kernel."""
        problem, kind = self.problem, LIKE[name]
        nodes = self.rows if self.graph is None else items.number
        shapes = {
            "x": (nodes, problem.irreps_in1.dim),
            "g": (nodes, problem.irreps_out.dim),
            "y": (self.rows, plan.slots, problem.irreps_in2.dim),
            "h": (self.rows, plan.slots, self.hidden),
            "w": (programs if self.shared else self.rows, problem.weight_numel),
            "m": (programs, self.hidden, problem.weight_numel),
        }
        written_once = kind == "w" and not self.shared
        dtype = self.like.dtype if written_once else plan.arithmetic
        make = self.like.new_empty if plan.covered[name] and programs > 0 else self.like.new_zeros
        return make(shapes[kind], dtype=dtype)

    def _finish(self, name: str, result: Tensor, plan: Plan, items: Items) -> Tensor:
        """Adds what different programs found, and goes back to the operands' dtype."""
        kind = LIKE[name]
        if kind in "yh":
            result = result.sum(1) if plan.slots > 1 else result[:, 0]
        elif self._is_summed(name):
            result = result.sum(0, keepdim=kind == "w")
        elif kind in "xg" and self.graph is not None:
            result = result[: items.num_nodes]
        return result.to(self.like.dtype)
