"""The text of `TensorProduct.explain()`: what runs, why, and what it costs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqtp.backend import Backend, Resolution, resolve
from eqtp.kernels.channelwise import op as channelwise
from eqtp.kernels.channelwise._ops import takes_radial
from eqtp.kernels.tensor_product import op as tensor_product
from eqtp.methods import Method
from eqtp.problem import TensorProductProblem

from .family import FamilyChoice

__all__ = ["explain", "flops_per_row"]


def explain(
    problem: TensorProductProblem,
    *,
    title: str,
    method: Method,
    choose_family: FamilyChoice,
    like: Tensor | None,
) -> str:
    """A report of what runs and why.

    Args:
        problem: The product.
        title: First line.
        method: The product's method.
        choose_family: Tells the kernel family and holds the backend that the caller asked for.
        like: A tensor whose device and dtype the operands have; CPU and default dtype when None.
    """
    device = "cpu" if like is None else like.device.type
    dtype = torch.get_default_dtype() if like is None else like.dtype
    rows, why_rows = choose_family(on_graph=False, device=device)
    graphs, why_graphs = choose_family(on_graph=True, device=device)
    chosen = _resolve(choose_family.backend, graphs, problem, device, dtype)
    kernels = [f"  kernel    {graphs}: {why_graphs}"]
    if rows != graphs:
        kernels += [f"            {rows} without a graph: {why_rows}"]
    columns = problem.irreps_in1.dim + problem.irreps_in2.dim + problem.irreps_out.dim
    weighted = sum(path.has_weight for path in problem.paths)
    return "\n".join(
        [
            title,
            f"  method    {method.name} ({method.summary})",
            *kernels,
            f"  backend   {chosen.backend}: {chosen.reason}",
            f"  paths     {len(problem.paths)}, {weighted} with weights; "
            f"{choose_family.constants} nonzero constants",
            f"  flops     {flops_per_row(problem):,} per row, forward",
            f"  bytes     {columns * dtype.itemsize:,} per row in {dtype} (x1, x2 and result once)"
            f" and {problem.weight_numel * dtype.itemsize:,} for weights per row",
            f"  radial    on graphs, {_radial(graphs, chosen.backend)}",
        ]
    )


def _radial(family: str, backend: Backend) -> str:
    if family == "channelwise" and takes_radial(backend):
        return "hidden @ matrix is computed inside the kernel and never stored"
    return f"the {backend!r} backend stores hidden @ matrix for every edge"


def _resolve(
    backend: Backend, family: str, problem: TensorProductProblem, device: str, dtype: torch.dtype
) -> Resolution:
    """What a family takes for operands of a device and dtype."""
    if family == "channelwise":
        return resolve(
            backend,
            family=family,
            implemented=channelwise.IMPLEMENTED,
            device=device,
            why_not=lambda name: channelwise.why_not(name, problem, dtype),
        )
    return resolve(
        backend,
        family=family,
        implemented=tensor_product.IMPLEMENTED,
        device=device,
        why_not=lambda name: tensor_product.why_not(name, problem, dtype),
    )


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
