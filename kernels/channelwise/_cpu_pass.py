"""What a pass over the edges of a channelwise product computes; `_cpu` says what a pass is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from eqtp.kernels.channelwise._program import LIKE
from eqtp.problem import Path, TensorProductProblem

__all__ = ["Pass"]


@dataclass(frozen=True)
class Pass:
    """What one kernel does.

    Attributes:
        problem: The product.
        operands: Names of the operands that are given.
        results: Names of the results.
        shared: Whether one row of weights serves all edges.
        dtype: float32 or float64.
        tile: Edges per tile.
        hidden: Columns of h where the weights are h m and never in memory; 0 where they are rows.
    """

    problem: TensorProductProblem
    operands: tuple[str, ...]
    results: tuple[str, ...]
    shared: bool
    dtype: torch.dtype
    tile: int
    hidden: int = 0

    @cached_property
    def present(self) -> tuple[str, ...]:
        """The operands as the program knows them."""
        names = [name for name in self.operands if LIKE[name] not in "hm"]
        if self.hidden:
            names.append("w")
            if "vh" in self.operands or "vm" in self.operands:
                names.append("vw")
        return tuple(names)

    @cached_property
    def computed(self) -> tuple[str, ...]:
        """The results as the program knows them.

        With w = h m and its direction vw = vh m + h vm, the gradient in h is grad_w2 m^T + grad_w
        vm^T and that in m is h^T grad_w2 + vh^T grad_w.
        """
        names = [name for name in self.results if LIKE[name] not in "hm"]
        for order, other in (("", ()), ("2", ("grad_w",))):
            if f"grad_h{order}" in self.results or f"grad_m{order}" in self.results:
                names.append(f"grad_w{order}")
                names += other if "vw" in self.present else ()
        return tuple(names)

    @cached_property
    def streamed(self) -> list[str]:
        """Arguments with a wide row of memory per edge.

        While a tile is computed, the next one's rows are fetched from memory, a line per step and
        in the order of their addresses, if the edges are sorted as their receivers are. 20,000
        edges with 64 channels and 17 paths, one thread of an AMD EPYC (Zen 4), ms: forward 10.0
        into the second cache, 11.5 into the first, 20.1 without; gradients 43 with the rows of the
        results fetched as well, 47 with those of the operands alone.
        """
        if self.hidden or self.shared:
            return []
        return [name for name in self.arguments if LIKE[name] == "w"]

    @property
    def arguments(self) -> tuple[str, ...]:
        """Operands, then results."""
        return (*self.operands, *self.results)

    @cached_property
    def turned(self) -> tuple[str, ...]:
        """The matrices that are needed turned as well, [weight_numel, hidden]."""
        if not any(LIKE[name] == "h" for name in self.results):
            return ()
        return tuple(name for name in self.operands if LIKE[name] == "m")

    def first_column(self, name: str, path: Path) -> int:
        """Column of a path's block in rows like `name`."""
        block = {"x": path.i_in1, "y": path.i_in2, "g": path.i_out}
        like = LIKE[name]
        if like == "w":
            return 0 if self.hidden else path.weight_start
        return self._first_columns[like][block[like]]

    @cached_property
    def _first_columns(self) -> dict[str, list[int]]:
        """Where every block starts."""
        problem = self.problem
        irreps = {"x": problem.irreps_in1, "y": problem.irreps_in2, "g": problem.irreps_out}
        return {name: [int(s.start) for s in value.slices()] for name, value in irreps.items()}
