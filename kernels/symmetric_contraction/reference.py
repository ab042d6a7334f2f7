"""Symmetric contraction: the definition, in dense tensors.

    out[n, c, M] = sum_nu sum_k weight[element(n), k, c]
                   sum_{i1 ... i_nu} U_nu[M, i1 ... i_nu, k] A[n, c, i1] ... A[n, c, i_nu]

for every irrep of the result, with A the components of x, U_nu the orthonormal basis of symmetric
couplings (`eqtp.so3.symmetric_coupling`) and nu = 1 ... correlation. Source: Batatia et al.,
NeurIPS 2022, arXiv:2206.07697, equations 10 and 11.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eqtp.layout import Layout, to_layout
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["symmetric_contraction_reference"]


def symmetric_contraction_reference(
    x: Float[Tensor, "num_nodes dim_in"],
    weight: Float[Tensor, "num_elements num_paths num_channels"],
    element: Int64[Tensor, " num_nodes"],
    problem: SymmetricContractionProblem,
    *,
    layout: Layout = "mul_ir",
) -> Float[Tensor, "num_nodes dim_out"]:
    """The formula above; same arguments as `symmetric_contraction`."""
    channels = problem.num_channels
    rows = to_layout(x, problem.irreps_in, layout, "ir_mul").view(-1, problem.dim_in, channels)
    out = x.new_zeros(x.shape[0], problem.dim_out, channels)
    start = 0
    for block, coupling in problem.couplings():
        weights = weight[element, start : start + coupling.num_paths]
        start += coupling.num_paths
        u = coupling.dense().to(x)
        term = torch.einsum("m...ik,nkc,nic->ncm...", u, weights, rows)
        for _ in range(coupling.degree - 1):
            term = torch.einsum("nc...i,nic->nc...", term, rows)
        out[:, block] += term.transpose(1, 2)
    result = out.flatten(1)
    return to_layout(result, problem.irreps_out, "ir_mul", layout)
