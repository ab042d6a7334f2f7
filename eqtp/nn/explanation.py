"""The text of `TensorProduct.explain()`: what runs, why, and what it costs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqtp.backend import Backend, resolve
from eqtp.kernels.channelwise import op as channelwise
from eqtp.kernels.tensor_product import op as tensor_product
from eqtp.methods import Method
from eqtp.problem import Path, TensorProductProblem
from eqtp.so3 import wigner_3j

__all__ = ["explain", "flops_per_row"]

_FAMILIES = {
    "channelwise": (
        channelwise.IMPLEMENTED,
        "every path is 'uvu' with one channel in irreps_in2",
    ),
    "tensor_product": (tensor_product.IMPLEMENTED, "serves all modes and multiplicities"),
}


def explain(
    problem: TensorProductProblem,
    *,
    title: str,
    method: Method,
    family: str,
    backend: Backend,
    like: Tensor | None,
) -> str:
    """A report of what runs and why.

    Args:
        problem: The product.
        title: First line.
        method: The product's method.
        family: Name of the kernel family.
        backend: What the caller asked for.
        like: A tensor whose device and dtype the operands have; CPU and default dtype when None.
    """
    device = "cpu" if like is None else like.device.type
    dtype = torch.get_default_dtype() if like is None else like.dtype
    implemented, why = _FAMILIES[family]
    chosen = resolve(backend, family=family, implemented=implemented, device=device)
    columns = problem.irreps_in1.dim + problem.irreps_in2.dim + problem.irreps_out.dim
    nonzeros = sum(_nonzeros(problem, path) for path in problem.paths)
    weighted = sum(path.has_weight for path in problem.paths)
    return "\n".join(
        [
            title,
            f"  method    {method.name} ({method.summary})",
            f"  kernel    {family}: {why}",
            f"  backend   {chosen.backend}: {chosen.reason}",
            f"  paths     {len(problem.paths)}, {weighted} with weights; {nonzeros} nonzero "
            "constants",
            f"  flops     {flops_per_row(problem):,} per row, forward",
            f"  bytes     {columns * dtype.itemsize:,} per row in {dtype} (x1, x2 and result once)"
            f" and {problem.weight_numel * dtype.itemsize:,} for weights per row",
            f"  radial    the {chosen.backend!r} backend stores hidden @ matrix for every edge",
        ]
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


def _nonzeros(problem: TensorProductProblem, path: Path) -> int:
    return int((wigner_3j(*problem.degrees(path)).abs() > 1e-14).sum())
