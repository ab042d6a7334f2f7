"""The definition of the linear maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from eqtp.kernels.linear.op import LinearProblem

__all__ = ["linear"]


def linear(
    x: Float[Tensor, "nodes dim_in"],
    weight: Float[Tensor, " weight_numel"],
    problem: LinearProblem,
    element: Int[Tensor, " nodes"] | None = None,
) -> Float[Tensor, "nodes dim_out"]:
    """``out[n, i, w] = sum_paths scale sum_u x[n, i, u] W[u, element(n), w]``, blocks [i, u].

    One matrix product per path and element that is there, on nodes sorted by element.
    """
    counts, order = [len(x)], None
    if element is not None:
        order = torch.argsort(element, stable=True)
        counts = torch.bincount(element, minlength=problem.num_elements).tolist()
        x = x.index_select(0, order)
    out = x.new_zeros(len(x), problem.dim_out)
    for path in problem.paths:
        end = path.weight + path.mul_in * problem.num_elements * path.mul_out
        matrices = weight[path.weight : end].view(path.mul_in, problem.num_elements, path.mul_out)
        columns = x[:, path.x : path.x + path.dim * path.mul_in]
        parts = [
            rows.reshape(-1, path.mul_in) @ matrices[:, z]
            for z, rows in enumerate(columns.split(counts))
        ]
        block = torch.cat(parts).view(len(x), path.dim * path.mul_out) * path.scale
        before, after = path.out, problem.dim_out - path.out - block.shape[1]
        out = out + torch.nn.functional.pad(block, (before, after))
    return out if order is None else out.index_select(0, torch.argsort(order))
