"""What a method must offer to stand behind `TensorProduct`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.layout import Layout
from eqtp.methods import Method
from eqtp.problem import TensorProductProblem

__all__ = ["Evaluator"]


class Evaluator(Protocol):
    """How one method computes one product; immutable, without parameters.

    Attributes:
        problem: The product, as "cg" would compute it.
        method: The method.
        backend: What the caller asked for.
        layout: Memory order of x1, x2 and the result.
        dim2: Columns of x2: those of `irreps_in2`, or 3 where x2 is an edge vector.
        weight_numel: Length of the method's own flat weight.
    """

    @property
    def problem(self) -> TensorProductProblem: ...
    @property
    def method(self) -> Method: ...
    @property
    def backend(self) -> Backend: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def dim2(self) -> int: ...
    @property
    def weight_numel(self) -> int: ...

    def __call__(
        self,
        x1: Tensor,
        x2: Tensor,
        weight: Tensor | None,
        *,
        graph: Graph | None,
        radial: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """The product of rows, or of the edges of a graph.

        Args:
            x1: [rows, dim1]; with a graph [num_src, dim1].
            x2: [rows, dim2]; with a graph one row per edge.
            weight: [weight_numel] or one row of them per row of x2; None without weights and
                where `radial` stands for them.
            graph: Message passing.
            radial: Pair (hidden, matrix) of fitting shapes.

        Returns:
            [rows, dim_out], or [num_dst, dim_out].
        """
        ...

    def effective_path_weights(self, weight: Tensor) -> Tensor:
        """The flat weights of the "cg" product of the same problem, from the method's own."""
        ...

    def prune(self, keep: Sequence[int]) -> Evaluator:
        """The product with only the paths `keep`, every constant unchanged."""
        ...

    def prune_weight(self, weight: Tensor, keep: Sequence[int]) -> Tensor:
        """The part of a flat weight that the paths `keep` read."""
        ...

    def family(self, device: str) -> str:
        """The kernel family that serves graphs on a type of device."""
        ...

    def explain(self, title: str, like: Tensor | None) -> str:
        """What runs and why, for operands like a tensor; CPU and default dtype when None."""
        ...
