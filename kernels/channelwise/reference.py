"""Definition of the channelwise ("uvu", one channel in x2) tensor product.

    out[e, i_out, u, k] += coefficient_p * weight[e, p, u]
                           * sum_ij w3j(l1, l2, l3)[i, j, k] * x1[e, i_in1, u, i] * x2[e, i_in2, j]

for every path p; with a graph, x1 is read at the sender of edge e and the result is summed at its
receiver. Plain, slow and exact in the dtype it is given: what the kernels are tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.layout import Layout, to_layout
from eqtp.problem import TensorProductProblem
from eqtp.so3 import wigner_3j

__all__ = ["channelwise_tensor_product"]


def channelwise_tensor_product(
    x1: Tensor,
    x2: Tensor,
    weight: Tensor | None,
    problem: TensorProductProblem,
    *,
    graph: Graph | None = None,
    layout: Layout = "mul_ir",
) -> Tensor:
    """The formula above, path by path; arguments as in `op.channelwise_tensor_product`."""
    in1, in2, out = problem.irreps_in1, problem.irreps_in2, problem.irreps_out
    x1 = to_layout(x1, in1, layout, "mul_ir")
    if graph is not None:
        x1 = x1[graph.edge_src]
    blocks = [x1.new_zeros(len(x2), mul_ir.mul, mul_ir.ir.dim) for mul_ir in out]
    for path in problem.paths:
        w3j = wigner_3j(*problem.degrees(path)).to(x1)
        mul, ir = in1[path.i_in1]
        a = x1[:, in1.slices()[path.i_in1]].unflatten(1, (mul, ir.dim))
        b = x2[:, in2.slices()[path.i_in2]]
        message = path.coefficient * torch.einsum("ijk,eui,ej->euk", w3j, a, b)
        if weight is not None and path.has_weight:
            message = message * weight[..., path.weight_slice, None]
        blocks[path.i_out] = blocks[path.i_out] + message
    rows = torch.cat([block.flatten(1) for block in blocks], dim=1)
    if graph is not None:
        rows = rows.new_zeros(graph.num_dst, out.dim).index_add(0, graph.edge_dst, rows)
    return to_layout(rows, out, "mul_ir", layout)
