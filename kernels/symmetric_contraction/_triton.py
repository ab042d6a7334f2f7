"""Symmetric contraction as Triton kernels: what `_program` says, unrolled, channels as lanes.

The weights are contracted with the constants of the couplings anew for every node: a coupling costs
a multiplication by an immediate constant, which is cheaper than loading a contracted weight.

The rows of the polynomials are split into kernels so that none spills registers
(`config.triton_launch`). A kernel adds to what those before it have written.
`eqtp.kernels.codegen.polynomial_triton` says how they are launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from eqtp.kernels.codegen import polynomial_triton
from eqtp.kernels.codegen.groups import balanced
from eqtp.kernels.codegen.polynomial_ops import Polynomials
from eqtp.kernels.codegen.polynomial_triton import run_passes
from eqtp.kernels.codegen.program import Variable
from eqtp.kernels.codegen.triton_device import TRITON_NAME, why_not_dtype
from eqtp.kernels.symmetric_contraction._factors import factorise
from eqtp.kernels.symmetric_contraction._torch import symmetric_contraction_torch
from eqtp.kernels.symmetric_contraction._triton_source import Kernel
from eqtp.kernels.symmetric_contraction.config import (
    TRITON_ITEM_NODES,
    TRITON_MAX_COUPLINGS,
    TritonLaunch,
    triton_launch,
)
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["Pass", "polynomials", "run", "why_unsupported"]


def polynomials(text: str) -> Polynomials:
    """The contraction of a problem's text."""
    problem = SymmetricContractionProblem.of_text(text)
    return Polynomials(problem, run, symmetric_contraction_torch, linear=True)


def why_unsupported(problem: SymmetricContractionProblem, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot serve a contraction; None where they can."""
    if (obstacle := why_not_dtype(dtype)) is not None:
        return obstacle
    couplings = _num_couplings(problem)
    if couplings > TRITON_MAX_COUPLINGS:
        return (
            f"its kernels are unrolled and take at most {TRITON_MAX_COUPLINGS} non-zero constants, "
            f"this contraction has {couplings}"
        )
    return None


@lru_cache(maxsize=1024)
def _num_couplings(problem: SymmetricContractionProblem) -> int:
    return sum(len(entry.couplings) for row in factorise(problem).rows for entry in row.entries)


@dataclass(frozen=True)
class Pass(polynomial_triton.Pass):
    """Results of the contraction that are computed together."""

    problem: SymmetricContractionProblem

    @property
    def item_nodes(self) -> int:
        """Most nodes of an item of work."""
        return TRITON_ITEM_NODES

    @cached_property
    def launch(self) -> TritonLaunch:
        """How the kernels are launched, and what they may hold."""
        return triton_launch(self.arithmetic.itemsize, self.lanes, self._of_weights)

    @property
    def _of_weights(self) -> bool:
        return "grad_weight" in self.results

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels in the order in which they run."""
        kernels: list[Kernel] = []
        begun: set[Variable] = set()
        for rows in self._parts():
            kernels.append(replace(self._kernel(rows), begun=frozenset(begun)))
            begun |= set(kernels[-1].written)
        return tuple(kernels)

    @property
    def adds(self) -> bool:
        """Whether kernels add to what those before them have written."""
        return len(self.kernels) > 1

    def _parts(self) -> list[tuple[int, ...]]:
        """Rows in groups: as few as the limits allow, of similar size."""
        rows = [
            kernel for number in self._order() if (kernel := self._kernel((number,))).statements
        ]
        return balanced(lambda share: self._greedy_parts(rows, share))

    def _greedy_parts(self, rows: Sequence[Kernel], share: float) -> list[tuple[int, ...]]:
        """Groups that are filled one after the other up to a share of the limits.

        A factor that several rows of a group use is made once and counted with each: working out
        the statements of every possible group would take longer than compiling them.
        """
        parts: list[tuple[int, ...]] = []
        products, kept = 0, set[Variable]()
        for row in rows:
            products += row.num_products
            kept.update(row.written)
            fits = products <= share * self.launch.max_products
            fits &= not self._of_weights or len(kept) <= self.launch.max_kept
            if parts and fits:
                parts[-1] = (*parts[-1], *row.rows)
            else:
                parts.append(row.rows)
                products, kept = row.num_products, set(row.written)
        return parts

    def _order(self) -> list[int]:
        """The rows: neighbours share factors, unless there are too many weights to keep."""
        rows = factorise(self.problem).rows
        numbers = [*range(len(rows))]
        if self._of_weights and self.problem.num_paths > self.launch.max_kept:
            block = [i for i, (_, ir) in enumerate(self.problem.irreps_out) for _ in range(ir.dim)]
            numbers.sort(key=lambda number: block[rows[number].out])
        return numbers

    def _kernel(self, rows: tuple[int, ...]) -> Kernel:
        return Kernel(
            problem=self.problem,
            rows=rows,
            results=self.results,
            dual=self.dual,
            begun=frozenset(),
            real=TRITON_NAME[self.arithmetic],
            channels=self.launch.channels,
        )


def run(problem: SymmetricContractionProblem, element: Tensor, **tensors: Tensor | None) -> None:
    """Computes results, see `polynomial_ops`."""
    run_passes(Pass, problem, element, tensors)
