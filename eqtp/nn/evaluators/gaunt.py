"""Gaunt products: blocks are functions on the sphere, and functions are multiplied point by point.

Three exact evaluations of the same product:

    direct    path by path, by the kernels of the "cg" product with the weights that are equal
    grid      on the smallest grid that is exact, `eqtp.kernels.gaunt_grid`
    fourier   by Fourier series on the torus, `eqtp.kernels.gaunt_fourier`

Functions hold all blocks of an operand, so grid and Fourier compute every path that there is among
the blocks; a product of some of the paths only is evaluated directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

from torch import Tensor

from eqtp.backend import Backend
from eqtp.compiling import constant_property
from eqtp.graph import Graph
from eqtp.kernels.gaunt_fourier import fourier_product
from eqtp.kernels.gaunt_grid import cost, sphere_product
from eqtp.kernels.gaunt_grid import op as grid_op
from eqtp.layout import Layout
from eqtp.methods import Method, get_method
from eqtp.nn.explanation import Explanation, flops_per_row
from eqtp.problem import TensorProductProblem

from .cg import ClebschGordan
from .sector_products import multiply_sectors
from .separable import SeparableWeights
from .sphere_functions import Sector, missing_paths, sectors_of

__all__ = ["Evaluation", "GauntProduct"]

Evaluation = Literal["auto", "direct", "grid", "fourier"]
"""How the product of functions is computed; "auto": the cheapest."""

_FOURIER_BACKENDS = ("auto", "torch")


@dataclass(frozen=True)
class GauntProduct:
    """`method="gaunt"` and "gaunt_full"; see `Evaluator` for the attributes and methods.

    Attributes:
        weights: The separable weights and the scales; they hold the problem and the method.
        backend: What the caller asked for.
        layout: Memory order of x1, x2 and the result.
        requested: The evaluation that was asked for.
    """

    weights: SeparableWeights
    backend: Backend
    layout: Layout
    requested: Evaluation = "auto"
    _direct: ClebschGordan = field(init=False, repr=False, compare=False)
    _sectors: tuple[Sector, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Not when first called: that may be inside of `torch.compile`, which cannot follow it.
        direct = ClebschGordan(self.weights.cg_problem, self.backend, self.layout)
        object.__setattr__(self, "_direct", direct)
        sectors: tuple[Sector, ...] = ()
        if self.why_not_on_grid is None:
            groupings = (sectors_of(self.problem, natural=natural) for natural in (True, False))
            sectors = min(groupings, key=len)
        object.__setattr__(self, "_sectors", sectors)

    @classmethod
    def of(
        cls,
        method: str,
        problem: TensorProductProblem,
        backend: Backend,
        layout: Layout,
        evaluation: Evaluation,
        passes: int,
    ) -> GauntProduct:
        """The product, if its method has all paths and the evaluation computes just these.

        Raises:
            ValueError: See `SeparableWeights.of`; or "grid" or "fourier" was asked for and would
                compute paths that are not among the instructions; or "fourier" for odd paths.
            NotImplementedError: "fourier" with a backend other than torch's.
        """
        weights = SeparableWeights.of(problem, get_method(method), passes)
        product = cls(weights, backend, layout, evaluation)
        obstacle = product.why_not_on_grid
        if evaluation in ("grid", "fourier") and obstacle is not None:
            raise ValueError(f"evaluation={evaluation!r}: {obstacle}; use evaluation='direct'")
        if evaluation == "fourier" and backend not in _FOURIER_BACKENDS:
            raise NotImplementedError(
                f"evaluation='fourier' runs in plain torch, got backend={backend!r}; use "
                "backend='torch' or evaluation='grid'"
            )
        if evaluation == "fourier" and any(sector.odd for sector in product._sectors):
            raise ValueError(
                "evaluation='fourier' multiplies functions, which has no odd paths "
                "(l1 + l2 + l3); use evaluation='grid'"
            )
        return product

    @property
    def problem(self) -> TensorProductProblem:
        return self.weights.problem

    @property
    def method(self) -> Method:
        return self.weights.method

    @property
    def dim2(self) -> int:
        return self.problem.dims[1]

    @property
    def weight_numel(self) -> int:
        return self.weights.numel

    @cached_property
    def why_not_on_grid(self) -> str | None:
        """Why products of functions do not compute just these paths; None where they do."""
        problem = self.problem
        modes = {path.mode for path in problem.paths}
        if len(modes) != 1:
            return f"products of functions need instructions of one mode, got {sorted(modes)}"
        missing = missing_paths(problem, self.method)
        if missing:
            named = ", ".join(
                f"({i}, {j}, {k}): {problem.irreps_in1[i].ir} x {problem.irreps_in2[j].ir} -> "
                f"{problem.irreps_out[k].ir}"
                for i, j, k in missing[:6]
            )
            return (
                "a product of functions computes every path of the method among the blocks, but "
                f"these {len(missing)} are not among the instructions, or are there twice: {named}"
                f"{', ...' if len(missing) > 6 else ''}"
            )
        return None

    @cached_property
    def flops(self) -> dict[str, float]:
        """Flops of a row for every evaluation that can serve, forward."""
        flops: dict[str, float] = {"direct": flops_per_row(self.problem)}
        if self.why_not_on_grid is None:
            channels = [self._channels(sector) for sector in self._sectors]
            pairs = list(zip(self._sectors, channels, strict=True))
            flops["grid"] = sum(cost.grid_flops(s.problem, c) for s, c in pairs)
            is_even = not any(sector.odd for sector in self._sectors)
            if is_even and self.backend in _FOURIER_BACKENDS:
                flops["fourier"] = sum(cost.fourier_flops(s.problem, c) for s, c in pairs)
        return flops

    def _channels(self, sector: Sector) -> tuple[int, int, int]:
        """Channels of the three functions of a sector."""
        mul1, mul2 = (
            1 if function.summed else int(function.irreps[function.blocks[0][0]].mul)
            for function in (sector.first, sector.second)
        )
        if sector.mode == "uvuv":
            mul1 = mul2 = mul1 * mul2
        passes = self.weights.passes
        return passes * mul1, passes * mul2, passes * max(mul1, mul2)

    @constant_property
    def evaluation(self) -> str:
        """The evaluation that runs: as asked for, or the cheapest by `cost.COST_NS`."""
        if self.requested != "auto":
            return self.requested
        costs = {name: cost.COST_NS[name] * flops for name, flops in self.flops.items()}
        if {path.mode for path in self.problem.paths} <= {"uuu", "uuw"}:
            costs["direct"] = cost.COST_NS["direct, equal channels"] * self.flops["direct"]
        return min(costs, key=costs.__getitem__)

    def __call__(
        self,
        x1: Tensor,
        x2: Tensor,
        weight: Tensor | None,
        *,
        graph: Graph | None,
        radial: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        x1, x2, weight = self.weights.operands(x1, x2, weight, graph, radial)
        if self.evaluation == "direct":
            paths = None if weight is None else self.weights.path_weights(weight)
            return self._direct(x1, x2, paths, graph=graph, radial=None)
        return multiply_sectors(
            self.weights,
            self._sectors,
            _by_fourier_series,
            x1,
            x2,
            weight,
            graph,
            self.layout,
            self._on_grid if self.evaluation == "grid" else None,
        )

    def _on_grid(
        self,
        first: Tensor,
        second: Tensor,
        sector: Sector,
        of_first: Tensor | None,
        of_second: Tensor | None,
        of_result: Tensor | None,
    ) -> Tensor:
        return sphere_product(
            first, second, sector.problem, of_first, of_second, of_result, backend=self.backend
        )

    def effective_path_weights(self, weight: Tensor) -> Tensor:
        return self.weights.effective_path_weights(weight)

    def prune(self, keep: Sequence[int]) -> GauntProduct:
        pruned = replace(self, weights=self.weights.prune(keep))
        return pruned if pruned.why_not_on_grid is None else replace(pruned, requested="direct")

    def prune_weight(self, weight: Tensor, keep: Sequence[int]) -> Tensor:
        return weight

    def family(self, device: str) -> str:
        if self.evaluation == "direct":
            return self._direct.family(device)
        return f"gaunt_{self.evaluation}"

    def explain(self, title: str, like: Tensor | None) -> str:
        explanation = Explanation.of(self, title, like)
        why = "asked for by name"
        if self.requested == "auto":
            why = self.why_not_on_grid or "the cheapest by the cost model"
        costs = ", ".join(f"{name} {value:,.0f}" for name, value in self.flops.items())
        head = f"  evaluation {self.evaluation}: {why}; flops of a row, forward: {costs}"
        if self.evaluation == "direct":
            return explanation.text(head, *self._direct.explain_kernels(explanation))
        lines = [head]
        for sector in self._sectors:
            lines.append(
                f"  kernel    gaunt_{self.evaluation}: {'curl' if sector.odd else 'even'}, degrees "
                f"{sector.first.degrees} x {sector.second.degrees} -> {sector.result.degrees}, "
                f"exact to degree {sector.problem.degree}"
            )
            backend = "torch: the Fourier form has no other"
            if self.evaluation == "grid":
                why_not = partial(grid_op.why_not, problem=sector.problem, dtype=explanation.dtype)
                chosen = explanation.resolve("gaunt_grid", grid_op.IMPLEMENTED, why_not)
                backend = f"{chosen.backend}: {chosen.reason}"
            lines.append(f"  backend   {backend}")
        return explanation.text(*lines)


def _by_fourier_series(first: Tensor, second: Tensor, sector: Sector) -> Tensor:
    return fourier_product(first, second, sector.problem)
