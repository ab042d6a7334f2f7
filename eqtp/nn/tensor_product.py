"""The tensor product of two equivariant features as a module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.backend import Backend, check_backend
from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.layout import Layout, check_layout
from eqtp.methods import WeightRank
from eqtp.operands import check_alike
from eqtp.problem import IrrepNormalization, Mode, PathNormalization, TensorProductProblem

from .evaluators import Evaluation, Evaluator, make_evaluator
from .evaluators.cg import ClebschGordan

__all__ = ["TensorProduct"]


class TensorProduct(nn.Module):
    """Tensor product of two equivariant features, path by path as the instructions say.

        out[W, k] += coefficient * sum w3j(l1, l2, l3)[i, j, k] * weight[...] * x1[U, i] * x2[V, j]

    In place of `e3nn.o3.TensorProduct`: the same names of arguments, instruction tuples,
    normalisations, order of weights and numbers. O(3)-equivariant, differentiable to any order.

    Args:
        irreps_in1: Irreps of x1.
        irreps_in2: Irreps of x2.
        irreps_out: Irreps of the result.
        instructions: Tuples (i_in1, i_in2, i_out, mode, has_weight[, path_weight]); mode is one of
            uvw, uvu, uvv, uuw, uuu, uvuv, uvu<v, u<vw.
        irrep_normalization: "component" (also None), "norm" or "none".
        path_normalization: "element" (also None), "path" or "none".
        internal_weights: Whether the module owns its weights (a Parameter `weight`); by default
            when there are any and they are shared.
        shared_weights: False where every row must bring its own weights.
        method: How the paths are computed; see `eqtp.methods`.
        backend: Which implementation runs; see `eqtp.backend`.
        layout: Memory order of x1, x2 and the result.
        evaluation: For the Gaunt methods: how functions on the sphere are multiplied.
        passes: For the Gaunt methods: number of independently weighted products that are summed.
        in1_var: Variance of each block of x1, 1 by default.
        in2_var: Variance of each block of x2, 1 by default.
        out_var: Wanted variance of each block of the result, 1 by default.

    Raises:
        ValueError: An argument or instruction breaks a rule; the message names it.
        NotImplementedError: The method or backend is not part of this version.

    Example:
        >>> tp = TensorProduct("8x0e+8x1o", "0e+1o", "8x1o",
        ...                    [(0, 1, 0, "uvu", True), (1, 0, 0, "uvu", True)])
        >>> tp(torch.randn(5, 32), torch.randn(5, 4)).shape
        torch.Size([5, 24])
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        irreps_in1: Irreps | str,
        irreps_in2: Irreps | str,
        irreps_out: Irreps | str,
        instructions: Iterable[Sequence[Any]],
        irrep_normalization: IrrepNormalization | None = "component",
        path_normalization: PathNormalization | None = "element",
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        *,
        method: str = "cg",
        backend: Backend = "auto",
        layout: Layout = "mul_ir",
        evaluation: Evaluation = "auto",
        passes: int = 1,
        in1_var: Sequence[float] | None = None,
        in2_var: Sequence[float] | None = None,
        out_var: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        problem = TensorProductProblem.from_instructions(
            irreps_in1,
            irreps_in2,
            irreps_out,
            instructions,
            irrep_normalization=irrep_normalization,
            path_normalization=path_normalization,
            in1_var=in1_var,
            in2_var=in2_var,
            out_var=out_var,
        )
        self.irrep_normalization = irrep_normalization or "component"
        self.path_normalization = path_normalization or "element"
        check_layout(layout)
        check_backend(backend)
        evaluator = make_evaluator(
            method, problem, backend=backend, layout=layout, evaluation=evaluation, passes=passes
        )
        self._set_up(evaluator, internal_weights, shared_weights)

    def _set_up(
        self, evaluator: Evaluator, internal_weights: bool | None, shared_weights: bool | None
    ) -> None:
        """Everything but the problem's own arguments; e3nn's defaults for the weights."""
        weight_numel = evaluator.weight_numel
        if internal_weights is None:
            internal_weights = shared_weights is not False and weight_numel > 0
        self.shared_weights = True if shared_weights is None else shared_weights
        if internal_weights and not self.shared_weights:
            raise ValueError(
                "internal_weights=True needs shared_weights=True: the module cannot own a weight "
                "for every row; pass internal_weights=False and the weights to forward"
            )
        self.evaluator = evaluator
        self.internal_weights = internal_weights
        weight = nn.Parameter(torch.randn(weight_numel)) if internal_weights else None
        self.register_parameter("weight", weight if weight_numel > 0 else None)

    @property
    def problem(self) -> TensorProductProblem:
        """The description of the product."""
        return self.evaluator.problem

    @property
    def layout(self) -> Layout:
        """Memory order of x1, x2 and the result."""
        return self.evaluator.layout

    @property
    def irreps_in1(self) -> Irreps:
        """Irreps of x1."""
        return self.problem.irreps_in1

    @property
    def irreps_in2(self) -> Irreps:
        """Irreps of x2."""
        return self.problem.irreps_in2

    @property
    def irreps_out(self) -> Irreps:
        """Irreps of the result."""
        return self.problem.irreps_out

    @property
    def instructions(self) -> list[tuple[int, int, int, Mode, bool, float]]:
        """The paths as e3nn's tuples, with path_weight as passed in."""
        return self.problem.instructions

    @property
    def weight_numel(self) -> int:
        """Length of the flat weight."""
        return self.evaluator.weight_numel

    @property
    def family(self) -> str:
        """The kernel family that serves graphs where the module's weights are; see `explain`."""
        return self.evaluator.family("cpu" if self.weight is None else self.weight.device.type)

    @property
    def weight_rank(self) -> WeightRank:
        """Whether every path has weights of its own ("full") or not ("separable")."""
        return self.evaluator.method.weight_rank

    def forward(
        self,
        x1: Float[Tensor, "*rows_in1 dim1"],
        x2: Float[Tensor, "*rows dim2"],
        weight: Float[Tensor, "*rows weight_numel"] | None = None,
        *,
        graph: Graph | None = None,
        radial: tuple[Float[Tensor, "rows hidden"], Float[Tensor, "hidden weight_numel"]]
        | None = None,
    ) -> Float[Tensor, "*rows_out dim_out"]:
        """The product.

        Args:
            x1: First operand; without a graph, leading dimensions broadcast as in e3nn.
            x2: Second operand; with a graph, one row per edge.
            weight: Flat weights for all rows or one set per row; the module's own when None.
            graph: Message passing: x1 [num_src, dim1] is taken at the senders, results are summed
                at the receivers.
            radial: Pair (hidden, matrix) that stands for weight = hidden @ matrix.

        Returns:
            Columns as `irreps_out`; with a graph one row per receiver.

        Raises:
            ValueError: A shape breaks the rules, or weights are missing or given twice.
            TypeError: Operands differ in dtype or device.
        """
        if radial is None:
            weight = self._resolve_weight(weight)
        else:
            self._check_radial(weight, radial)
        if graph is not None:
            return self.evaluator(x1, x2, weight, graph=graph, radial=radial)
        batch = _broadcast(x1, x2, weight)
        rows = math.prod(batch)
        if weight is not None and weight.ndim > 1:
            weight = weight.expand(*batch, weight.shape[-1]).reshape(rows, weight.shape[-1])
        out = self.evaluator(
            x1.expand(*batch, x1.shape[-1]).reshape(rows, x1.shape[-1]),
            x2.expand(*batch, x2.shape[-1]).reshape(rows, x2.shape[-1]),
            weight,
            graph=None,
            radial=radial,
        )
        return out.reshape(*batch, out.shape[-1])

    def _resolve_weight(self, weight: Tensor | None) -> Tensor | None:
        if weight is None:
            weight = self.weight
        if weight is not None and weight.ndim < 2 and not self.shared_weights:
            raise ValueError(
                f"weight must have one row of {self.weight_numel} per row of x2 "
                f"(shared_weights=False), got shape {tuple(weight.shape)}"
            )
        return weight

    def _check_radial(self, weight: Tensor | None, radial: tuple[Tensor, Tensor]) -> None:
        if weight is not None:
            raise ValueError("give weight or radial=(hidden, matrix), got both")
        hidden, matrix = radial
        check_alike(hidden=hidden, matrix=matrix)
        if matrix.shape != (hidden.shape[-1], self.weight_numel):
            raise ValueError(
                f"radial=(hidden [rows, H], matrix [H, {self.weight_numel}]) must fit each "
                f"other, got shapes {tuple(hidden.shape)} and {tuple(matrix.shape)}"
            )

    def effective_path_weights(
        self, weight: Float[Tensor, "*rows weight_numel"] | None = None
    ) -> Float[Tensor, "*rows path_weight_numel"]:
        """Weights of the "cg" product with the same instructions that give the same result.

        Args:
            weight: Flat weights; the module's own when None.

        Raises:
            ValueError: There are no weights, or their number is wrong.
        """
        weight = self.weight if weight is None else weight
        if weight is None:
            raise ValueError(
                f"weight must be given: the module has no weights of its own; pass "
                f"[{self.weight_numel}]"
            )
        if weight.shape[-1:] != (self.weight_numel,):
            raise ValueError(
                f"weight must have {self.weight_numel} columns, got shape {tuple(weight.shape)}"
            )
        return self.evaluator.effective_path_weights(weight)

    def weight_view_for_instruction(self, instruction: int, weight: Tensor | None = None) -> Tensor:
        """The weights of one path, in the path's own shape, as in e3nn.

        Raises:
            ValueError: The path has no weights.
        """
        path = self.problem.paths[instruction]
        if not path.has_weight:
            weighted = [i for i, path in enumerate(self.problem.paths) if path.has_weight]
            raise ValueError(
                f"instruction {instruction} has no weights; those of {weighted} have some"
            )
        weight = self.effective_path_weights(weight)
        return weight[..., path.weight_slice].view(*weight.shape[:-1], *path.weight_shape)

    def weight_views(self, weight: Tensor | None = None) -> Iterator[Tensor]:
        """The weights of every weighted path, in order; see `weight_view_for_instruction`."""
        for index, path in enumerate(self.problem.paths):
            if path.has_weight:
                yield self.weight_view_for_instruction(index, weight)

    def prune(self, keep: Sequence[int], *, compact: bool = False) -> TensorProduct:
        """A new module with only the paths `keep`; equals this one with the others' weights zero.

        Args:
            keep: Indices of the instructions that stay. Their constants are frozen: the
                normalisation remains that of the whole product.
            compact: Leaves out the blocks of the result that no path reaches any more, which
                are zero otherwise.

        Raises:
            ValueError: An index is out of range or repeated.
            NotImplementedError: `compact` with another method than "cg".
        """
        pruned = TensorProduct.__new__(TensorProduct)
        nn.Module.__init__(pruned)
        pruned.irrep_normalization = self.irrep_normalization
        pruned.path_normalization = self.path_normalization
        evaluator = self.evaluator.prune(keep)
        if compact:
            if not isinstance(evaluator, ClebschGordan):
                raise NotImplementedError(
                    f"compact=True needs method 'cg', got {evaluator.method.name!r}; prune without"
                )
            evaluator = replace(evaluator, problem=evaluator.problem.compact())
        pruned._set_up(evaluator, self.internal_weights, self.shared_weights)
        if self.weight is not None and pruned.weight is not None:
            weight = self.evaluator.prune_weight(self.weight, keep)
            pruned.weight = nn.Parameter(weight.detach().clone())
        return pruned

    def explain(self, like: Tensor | None = None) -> str:
        """What runs and why: method, kernel family, backend, flops and bytes of a row.

        Args:
            like: A tensor of the operands' device and dtype. By default the module's weights; where
                it has none the default dtype, on a GPU with backend "triton", otherwise on a CPU.
        """
        return self.evaluator.explain(str(self), self.weight if like is None else like)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.irreps_in1} x {self.irreps_in2} -> {self.irreps_out} | "
            f"{len(self.problem.paths)} paths | {self.weight_numel} weights)"
        )


def _broadcast(x1: Tensor, x2: Tensor, weight: Tensor | None) -> tuple[int, ...]:
    shapes = [x1.shape[:-1], x2.shape[:-1]]
    if weight is not None and weight.ndim > 1:
        shapes.append(weight.shape[:-1])
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError as error:
        raise ValueError(
            "leading dimensions of x1, x2 and weight must broadcast, got "
            f"{', '.join(str(tuple(shape)) for shape in shapes)}; for message passing pass graph="
        ) from error
