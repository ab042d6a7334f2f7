"""Symmetric contraction as Triton kernels: what `_program` says, channels as lanes.

    out, grad_x     for every node and block of channels, in parallel: the statements, unrolled
    grad_weight     for every item of work (some nodes of one element) and block of channels:
                      for every node of the item: the statements
                      store the item's share
                    for every element: the sum of its items' shares, in order

The weights are contracted with the constants of the couplings anew for every node: a coupling costs
a multiplication by an immediate constant, which is cheaper than loading a contracted weight.

* Kernels. The rows of the polynomials are split into kernels so that none spills registers
  (`config.triton_launch`). A kernel adds to what those before it have written.
* Items are made on the device and their number is bounded by shapes, so nothing waits for the
  device. Nothing is atomic: results are the same from run to run. (The op itself waits, once per
  call, to check that the elements are in range.)

float16 and bfloat16 are types of storage: arithmetic and sums are in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from eqtp.kernels.codegen.polynomial_ops import Polynomials
from eqtp.kernels.codegen.polynomial_triton import (
    ARITHMETIC,
    TRITON_NAME,
    Items,
    lanes,
    sum_items,
)
from eqtp.kernels.codegen.program import Variable
from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.symmetric_contraction._factors import factorise
from eqtp.kernels.symmetric_contraction._torch import symmetric_contraction_torch
from eqtp.kernels.symmetric_contraction._triton_source import FUNCTION, Kernel
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
    if dtype not in ARITHMETIC:
        return f"its kernels are for {', '.join(map(str, ARITHMETIC))}, got {dtype}"
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
class Pass:
    """Results that are computed together, as kernels.

    Attributes:
        problem: The contraction.
        results: "grad_weight" alone, or "out" and "grad_x" or one of them.
        dual: Whether the results are the derivatives in the direction h of x.
        arithmetic: float32 or float64.
        lanes: Threads of a warp.
    """

    problem: SymmetricContractionProblem
    results: tuple[str, ...]
    dual: bool
    arithmetic: torch.dtype
    lanes: int

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

    def covers(self, result: str, dim: int) -> bool:
        """Whether some kernel writes every one of a result's components."""
        written = {v for kernel in self.kernels for v in kernel.written if v.name == result}
        return len(written) == dim

    def _parts(self) -> list[tuple[int, ...]]:
        """Rows in groups: as few as the limits allow, of similar size."""
        rows = [
            kernel for number in self._order() if (kernel := self._kernel((number,))).statements
        ]
        fewest = self._greedy_parts(rows, 1.0)
        for share in (0.5, 0.6, 0.7, 0.8, 0.9):
            parts = self._greedy_parts(rows, share)
            if len(parts) == len(fewest):
                return parts
        return fewest

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
    given = {name: t for name, t in tensors.items() if t is not None}
    with torch.cuda.device_of(element):
        together = tuple(name for name in ("out", "grad_x") if name in given)
        if together:
            _run_nodes(problem, element, together, given)
        if "grad_weight" in given:
            _run_items(problem, element, given)


def _run_nodes(
    problem: SymmetricContractionProblem,
    element: Tensor,
    results: tuple[str, ...],
    given: dict[str, Tensor],
) -> None:
    """The results that belong to a node."""
    plan = _pass_of(problem, results, given)
    dims = {"out": problem.dim_out, "grad_x": problem.dim_in}
    # Sums that go on from kernel to kernel are kept in the type of the arithmetic.
    sums = {
        name: given[name]
        if given[name].dtype == plan.arithmetic or len(plan.kernels) == 1
        else torch.empty_like(given[name], dtype=plan.arithmetic)
        for name in results
    }
    for name in results:
        if not plan.covers(name, dims[name]):
            sums[name].zero_()
    _launch(plan, {**given, **sums, "element": element}, len(element))
    for name in results:
        if sums[name] is not given[name]:
            given[name].copy_(sums[name])


def _run_items(
    problem: SymmetricContractionProblem, element: Tensor, given: dict[str, Tensor]
) -> None:
    """The gradient in the weights."""
    total = given["grad_weight"]
    plan = _pass_of(problem, ("grad_weight",), given)
    if not plan.kernels or len(element) == 0:
        total.zero_()
        return
    items = Items.of_elements(element, total.shape[0], TRITON_ITEM_NODES)
    make = torch.empty if plan.covers("grad_weight", problem.num_paths) else torch.zeros
    number, numel = len(items.start), problem.num_paths * problem.num_channels
    shares = make(number, numel, dtype=plan.arithmetic, device=element.device)
    tensors = {
        **given,
        "grad_weight": shares,
        "node": items.node,
        "item_start": items.start,
        "item_stop": items.stop,
    }
    _launch(plan, tensors, number)
    sum_items(shares, items, total)


def _launch(plan: Pass, tensors: dict[str, Tensor], programs: int) -> None:
    if programs == 0:
        return
    launch = plan.launch
    grid = (programs, -(-plan.problem.num_channels // launch.channels))
    options: dict[str, Any] = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": True,
    }
    for kernel in plan.kernels:
        arguments = [tensors[name] for name in kernel.arguments]
        load_function(kernel.source, FUNCTION)[grid](*arguments, **options)


def _pass_of(
    problem: SymmetricContractionProblem, results: tuple[str, ...], given: dict[str, Tensor]
) -> Pass:
    x = given["x"]
    return _make_pass(problem, results, "h" in given, ARITHMETIC[x.dtype], lanes(x.device))


@lru_cache(maxsize=1024)
def _make_pass(
    problem: SymmetricContractionProblem,
    results: tuple[str, ...],
    dual: bool,
    arithmetic: torch.dtype,
    lanes: int,
) -> Pass:
    """A pass, made once: its kernels are worked out when first used."""
    return Pass(problem, results, dual, arithmetic, lanes)
