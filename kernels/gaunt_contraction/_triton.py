"""The flat many-body Gaunt product as Triton kernels: what `_program` says, channels as lanes.

    out, grad_x     for every node and block of channels, in parallel
    grad_weight     for every item of work (some nodes of one element) and block of channels:
                      for every node of the item
                      store the item's share
                    for every element: the sum of its items' shares, in order

A node is taken through the grid orbit by orbit, in a loop for every kind of orbits whose constants
are read from a table, so that the code does not grow with the grid. Values on the grid stay in
registers. The components of grad_x and grad_weight are split into kernels where all together would
spill.

float16 and bfloat16 are types of storage: arithmetic and sums are in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from eqtp.gaunt_contraction_problem import GauntContractionProblem
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
from eqtp.kernels.gaunt_contraction._program import orbits_of
from eqtp.kernels.gaunt_contraction._torch import gaunt_contraction_torch
from eqtp.kernels.gaunt_contraction._triton_source import FUNCTION, Kernel
from eqtp.kernels.gaunt_contraction.config import (
    TRITON_ITEM_NODES,
    TRITON_MAX_LMAX,
    TritonLaunch,
    triton_max_components,
)

__all__ = ["Pass", "constants", "polynomials", "run", "why_unsupported"]


def polynomials(text: str) -> Polynomials:
    """The product of a problem's text."""
    problem = GauntContractionProblem.of_text(text)
    return Polynomials(problem, run, gaunt_contraction_torch, linear=False)


def why_unsupported(problem: GauntContractionProblem, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot serve a product; None where they can."""
    if dtype not in ARITHMETIC:
        return f"its kernels are for {', '.join(map(str, ARITHMETIC))}, got {dtype}"
    if problem.iterated and problem.correlation > 2:
        return "its kernels are for the flat form, got the iterated one"
    limit = TRITON_MAX_LMAX[ARITHMETIC[dtype].itemsize]
    lmax = max(*problem.degrees_in, *problem.degrees_out)
    if lmax > limit:
        return f"its kernels fit into registers up to lmax {limit} for {dtype}, got {lmax}"
    return None


@dataclass(frozen=True)
class Pass:
    """Results that are computed together, as kernels.

    Attributes:
        problem: The product.
        results: "grad_weight" alone, or "out" and "grad_x" or one of them.
        dual: Whether the results are the derivatives in the direction h of x.
        arithmetic: float32 or float64.
        lanes: Threads of a warp.
    """

    problem: GauntContractionProblem
    results: tuple[str, ...]
    dual: bool
    arithmetic: torch.dtype
    lanes: int

    @cached_property
    def launch(self) -> TritonLaunch:
        """How the kernels are launched."""
        return TritonLaunch(channels=self.lanes)

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels; their order does not matter."""
        real = TRITON_NAME[self.arithmetic]
        return tuple(
            Kernel(self.problem, group, self.dual, real, self.launch.channels)
            for group in self._groups()
        )

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
def constants(problem: GauntContractionProblem, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The table that the kernels read: of every orbit the rows of synthesis and analysis."""
    rows = [
        torch.cat([kind.synthesis, kind.analysis], dim=1).flatten() for kind in orbits_of(problem)
    ]
    return torch.cat(rows).to(device, dtype)


def run(problem: GauntContractionProblem, element: Tensor, **tensors: Tensor | None) -> None:
    """Computes results, see `polynomial_ops`."""
    given = {name: t for name, t in tensors.items() if t is not None} | {"element": element}
    with torch.cuda.device_of(element):
        together = tuple(name for name in ("out", "grad_x") if name in given)
        if together:
            _launch(_pass_of(problem, together, given), given, len(element))
        if "grad_weight" in given:
            _run_items(problem, given)


def _run_items(problem: GauntContractionProblem, given: dict[str, Tensor]) -> None:
    """The gradient in the weights."""
    total, element = given["grad_weight"], given["element"]
    if len(element) == 0:
        total.zero_()
        return
    plan = _pass_of(problem, ("grad_weight",), given)
    items = Items.of_elements(element, total.shape[0], TRITON_ITEM_NODES)
    number, numel = len(items.start), problem.num_weights * problem.num_channels
    shares = torch.empty(number, numel, dtype=plan.arithmetic, device=element.device)
    indices = {"node": items.node, "item_start": items.start, "item_stop": items.stop}
    _launch(plan, {**given, **indices, "grad_weight": shares}, number)
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
    table = constants(plan.problem, plan.arithmetic, tensors["element"].device)
    for kernel in plan.kernels:
        arguments = [table if name == "table" else tensors[name] for name in kernel.arguments]
        load_function(kernel.source, FUNCTION)[grid](*arguments, **options)


def _pass_of(
    problem: GauntContractionProblem, results: tuple[str, ...], given: dict[str, Tensor]
) -> Pass:
    x = given["x"]
    return _make_pass(problem, results, "h" in given, ARITHMETIC[x.dtype], lanes(x.device))


@lru_cache(maxsize=1024)
def _make_pass(
    problem: GauntContractionProblem,
    results: tuple[str, ...],
    dual: bool,
    arithmetic: torch.dtype,
    lanes: int,
) -> Pass:
    """A pass, made once: its kernels are worked out when first used."""
    return Pass(problem, results, dual, arithmetic, lanes)
