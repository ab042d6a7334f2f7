"""The flat many-body Gaunt product as Triton kernels: what `_program` says, channels as lanes.

    out, grad_x     for every node and block of channels, in parallel
    grad_weight     for every item of work (some nodes of one element) and block of channels:
                      for every node of the item
                      store the item's share
                    for every element: the sum of its items' shares, in order

A node is taken through the grid orbit by orbit, in a loop for every kind of orbits whose constants
are read from a table, so that the code does not grow with the grid. Values on the grid stay in
registers. The components of grad_weight are split into kernels where all together would spill.

float16 and bfloat16 are types of storage: arithmetic and sums are in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen.polynomial_autograd import Polynomials, contract
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
from eqtp.layout import Layout

__all__ = ["Pass", "constants", "gaunt_contraction_triton", "run", "why_unsupported"]


def gaunt_contraction_triton(
    x: Float[Tensor, "num_nodes dim_in"],
    weight: Float[Tensor, "num_elements num_weights num_channels"],
    element: Int64[Tensor, " num_nodes"],
    problem: GauntContractionProblem,
    *,
    layout: Layout = "mul_ir",
) -> Float[Tensor, "num_nodes dim_out"]:
    """The op on CUDA tensors; same arguments as the reference."""
    polynomials = Polynomials(problem, run, gaunt_contraction_torch, linear=False)
    return contract(x, weight, element, polynomials, layout)


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
        if "grad_weight" in self.results:
            groups = self._groups_of_weights()
        else:
            dims = {"out": self.problem.dim_out, "grad_x": self.problem.dim_in}
            groups = [tuple(Variable(r, (i,)) for r in self.results for i in range(dims[r]))]
        real = TRITON_NAME[self.arithmetic]
        return tuple(
            Kernel(self.problem, group, self.dual, real, self.launch.channels) for group in groups
        )

    def _groups_of_weights(self) -> list[tuple[Variable, ...]]:
        """The weights w together, and u in groups of few components of f."""
        limit = triton_max_components(self.arithmetic.itemsize, self.dual)
        first = self.problem.power_weights(0).start
        groups = [
            tuple(Variable("grad_weight", (i,)) for i in range(first, self.problem.num_weights))
        ]
        components = limit
        for block, degree in enumerate(self.problem.degrees_in):
            variable = Variable("grad_weight", (block,))
            components += 2 * degree + 1
            if components > limit:
                groups.append((variable,))
                components = 2 * degree + 1
            else:
                groups[-1] += (variable,)
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
    """Computes results, see `polynomial_autograd`."""
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
