"""The flat many-body Gaunt product as Triton kernels: what `_program` says, channels as lanes.

A node is taken through the grid orbit by orbit, in a loop for every kind of orbits whose constants
are read from a table, so that the code does not grow with the grid. Values on the grid stay in
registers. The components of grad_x and grad_weight are split into kernels where all together would
spill. `eqtp.kernels.codegen.polynomial_triton` says how they are launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen import polynomial_triton
from eqtp.kernels.codegen.polynomial_ops import Polynomials
from eqtp.kernels.codegen.polynomial_triton import run_passes
from eqtp.kernels.codegen.program import Variable
from eqtp.kernels.codegen.triton_device import ARITHMETIC, TRITON_NAME, why_not_dtype
from eqtp.kernels.gaunt_contraction._program import orbits_of
from eqtp.kernels.gaunt_contraction._torch import gaunt_contraction_torch
from eqtp.kernels.gaunt_contraction._triton_source import Kernel
from eqtp.kernels.gaunt_contraction.config import (
    TRITON_ITEM_NODES,
    TRITON_MAX_LMAX,
    TritonLaunch,
    triton_max_components,
)

__all__ = ["Pass", "polynomials", "run", "why_unsupported"]


def polynomials(text: str) -> Polynomials:
    """The product of a problem's text."""
    problem = GauntContractionProblem.of_text(text)
    return Polynomials(problem, run, gaunt_contraction_torch, linear=False)


def why_unsupported(problem: GauntContractionProblem, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot serve a product; None where they can."""
    if (obstacle := why_not_dtype(dtype)) is not None:
        return obstacle
    if problem.iterated and problem.correlation > 2:
        return "its kernels are for the flat form, got the iterated one"
    limit = TRITON_MAX_LMAX[ARITHMETIC[dtype].itemsize]
    lmax = max(*problem.degrees_in, *problem.degrees_out)
    if lmax > limit:
        return f"its kernels fit into registers up to lmax {limit} for {dtype}, got {lmax}"
    return None


@dataclass(frozen=True)
class Pass(polynomial_triton.Pass):
    """Results of the product that are computed together."""

    problem: GauntContractionProblem

    @property
    def item_nodes(self) -> int:
        """Most nodes of an item of work."""
        return TRITON_ITEM_NODES

    @cached_property
    def launch(self) -> TritonLaunch:
        """How the kernels are launched."""
        return TritonLaunch(channels=self.lanes)

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels; their order does not matter."""
        real = TRITON_NAME[self.arithmetic]
        return tuple(
            Kernel(self.problem, self.dual, real, self.launch.channels, group)
            for group in self._groups()
        )

    def constants(self, device: torch.device) -> dict[str, Tensor]:
        """The table."""
        return {"table": _table(self.problem, self.arithmetic, device)}

    def _groups(self) -> list[tuple[Variable, ...]]:
        """Results in groups whose share of the gradients in f stays in registers.

        The gradient in x of a block, or in its weight u, takes that in the parts of f of its
        degree. The other results take less: out goes with the first block, the weights w go alone.
        """
        of_weights = "grad_weight" in self.results
        limit = triton_max_components(self.arithmetic.itemsize, self.dual, of_weights)
        first = self.problem.power_weights(0).start
        groups: list[tuple[Variable, ...]] = [()]
        if "out" in self.results:
            groups[0] += tuple(Variable("out", (i,)) for i in range(self.problem.dim_out))
        if of_weights:
            powers = range(first, self.problem.num_weights)
            groups.insert(0, tuple(Variable("grad_weight", (i,)) for i in powers))
        if self.results == ("out",):
            return groups
        start = components = 0
        for block, degree in enumerate(self.problem.degrees_in):
            stop = start + 2 * degree + 1
            gradients = tuple(Variable("grad_x", (i,)) for i in range(start, stop))
            if of_weights:
                gradients = (Variable("grad_weight", (block,)),)
            components += stop - start
            if components > limit and components > stop - start:
                groups.append(())
                components = stop - start
            groups[-1] += gradients
            start = stop
        return groups


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _table(problem: GauntContractionProblem, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The table that the kernels read: of every orbit the rows of synthesis and analysis."""
    rows = [
        torch.cat([kind.synthesis, kind.analysis], dim=1).flatten() for kind in orbits_of(problem)
    ]
    return torch.cat(rows).to(device, dtype)


def run(problem: GauntContractionProblem, element: Tensor, **tensors: Tensor | None) -> None:
    """Computes results, see `polynomial_ops`."""
    run_passes(Pass, problem, element, tensors)
