"""The text of `TensorProduct.explain()`: what runs, why, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eqtp.backend import Backend, Resolution, resolve
from eqtp.kernels.channelwise import op as channelwise
from eqtp.kernels.channelwise._ops import takes_radial
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.tensor_product import op as tensor_product
from eqtp.problem import TensorProductProblem

from .family import FamilyChoice

if TYPE_CHECKING:
    from .evaluators.protocol import Evaluator

__all__ = ["Explanation", "flops_per_row"]


@dataclass(frozen=True)
class Explanation:
    """A report of what runs and why; each method adds lines of its own.

    Attributes:
        evaluator: How the product is computed.
        title: First line.
        device: Type of the operands' device.
        dtype: Of the operands.
    """

    evaluator: Evaluator
    title: str
    device: str
    dtype: torch.dtype

    @classmethod
    def of(cls, evaluator: Evaluator, title: str, like: Tensor | None) -> Explanation:
        """For operands like a tensor; None: default dtype, where the backend runs, else a CPU."""
        if like is not None:
            return cls(evaluator, title, like.device.type, like.dtype)
        device = "cuda" if evaluator.backend == "triton" else "cpu"
        return cls(evaluator, title, device, torch.get_default_dtype())

    @property
    def is_compiled_for_cpus(self) -> bool:
        """Whether C++ runs, given kernels that have it."""
        return self.device == "cpu" and why_unavailable("cpu") is None

    def text(self, *lines: str) -> str:
        """The title, the method, its lines, and the bytes of a row."""
        evaluator, itemsize = self.evaluator, self.dtype.itemsize
        method, problem = evaluator.method, evaluator.problem
        columns = problem.irreps_in1.dim + evaluator.dim2 + problem.irreps_out.dim
        return "\n".join(
            [
                self.title,
                f"  method    {method.name} ({method.summary})",
                *lines,
                f"  bytes     {columns * itemsize:,} per row in {self.dtype} (x1, x2 and result "
                f"once) and {evaluator.weight_numel * itemsize:,} for weights per row",
            ]
        )

    def resolve(
        self, family: str, implemented: Collection[str], why_not: Callable[[str], str | None]
    ) -> Resolution:
        """What a family takes for the operands."""
        return resolve(
            self.evaluator.backend,
            family=family,
            implemented=implemented,
            device=self.device,
            why_not=why_not,
        )

    def path_by_path(
        self, problem: TensorProductProblem, choose_family: FamilyChoice
    ) -> tuple[str, ...]:
        """Kernels, backend, paths and costs of a Clebsch-Gordan product."""
        rows, why_rows = choose_family(on_graph=False, device=self.device)
        graphs, why_graphs = choose_family(on_graph=True, device=self.device)
        op = channelwise if graphs == "channelwise" else tensor_product
        chosen = self.resolve(
            graphs, op.IMPLEMENTED, lambda name: op.why_not(name, problem, self.dtype)
        )
        kernels = [f"  kernel    {graphs}: {why_graphs}"]
        if rows != graphs:
            kernels += [f"            {rows} without a graph: {why_rows}"]
        weighted = sum(path.has_weight for path in problem.paths)
        return (
            *kernels,
            f"  backend   {chosen.backend}: {chosen.reason}",
            f"  paths     {len(problem.paths)}, {weighted} with weights; "
            f"{choose_family.constants} nonzero constants",
            f"  flops     {flops_per_row(problem):,} per row, forward",
            f"  radial    on graphs, {_radial(graphs, chosen.backend)}",
        )


def _radial(family: str, backend: Backend) -> str:
    if family == "channelwise" and takes_radial(backend):
        return "hidden @ matrix is computed inside the kernel and never stored"
    return f"the {backend!r} backend stores hidden @ matrix for every edge"


def flops_per_row(problem: TensorProductProblem) -> int:
    """Multiplications and additions of one row, constants contracted with x2 first."""
    total = 0
    for path in problem.paths:
        mul1, mul2, mul3 = problem.multiplicities(path)
        dim1, dim2, dim3 = (2 * degree + 1 for degree in problem.degrees(path))
        if "<" in path.mode:
            pairs, channels = math.comb(mul1, 2), math.comb(mul1, 2)
        elif path.mode in ("uuu", "uuw"):
            pairs, channels = mul1, mul1
        else:
            pairs, channels = mul1 * mul2, mul2
        mixed = mul3 if path.mode in ("uvw", "uuw", "u<vw") else 1
        total += 2 * (channels * dim1 * dim2 * dim3 + pairs * dim1 * dim3 + pairs * mixed * dim3)
    return total
