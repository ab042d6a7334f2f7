"""The definition of the tensor product: what every kernel of every family is held against.

For each path p from blocks i_in1 (degree l1) and i_in2 (l2) into block i_out (l3)

    out[z, W, k] += coefficient_p * sum_{i j} w3j(l1, l2, l3)[i, j, k]
                                  * sum_{U V} weight_p[z, ...] * x1[z, U, i] * x2[z, V, j]

where the mode says which multiplicities are summed, kept or tied (the table below; "q" counts the
pairs u < v). With a graph the rows z are edges: x1 is taken at the sender and the results are
summed at the receiver.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.layout import Layout, to_layout
from eqtp.problem import Mode, TensorProductProblem
from eqtp.so3 import wigner_3j

__all__ = ["tensor_product"]

# mode -> letters of the multiplicities of x1, x2, weight and out
_SUBSCRIPTS: dict[Mode, tuple[str, str, str, str]] = {
    "uvw": ("u", "v", "uvw", "w"),
    "uvu": ("u", "v", "uv", "u"),
    "uvv": ("u", "v", "uv", "v"),
    "uuw": ("u", "u", "uw", "w"),
    "uuu": ("u", "u", "u", "u"),
    "uvuv": ("u", "v", "uv", "uv"),
    "uvu<v": ("q", "q", "q", "q"),
    "u<vw": ("q", "q", "qw", "w"),
}


def tensor_product(
    x1: Float[Tensor, "rows_in1 dim1"],
    x2: Float[Tensor, "rows dim2"],
    weight: Float[Tensor, "*rows weight_numel"] | None,
    problem: TensorProductProblem,
    *,
    graph: Graph | None = None,
    layout: Layout = "mul_ir",
) -> Float[Tensor, "rows_out dim_out"]:
    """The formula above, term by term; see `op.tensor_product` for the arguments."""
    blocks1 = _blocks(to_layout(x1, problem.irreps_in1, layout, "mul_ir"), problem.irreps_in1)
    blocks2 = _blocks(to_layout(x2, problem.irreps_in2, layout, "mul_ir"), problem.irreps_in2)
    if graph is not None:
        blocks1 = [block.index_select(0, graph.edge_src) for block in blocks1]
    out = x2.new_zeros(x2.shape[0], problem.irreps_out.dim)
    for path in problem.paths:
        letters1, letters2, letters_weight, letters_out = _SUBSCRIPTS[path.mode]
        a, b = blocks1[path.i_in1], blocks2[path.i_in2]
        if "<" in path.mode:
            first, second = torch.triu_indices(a.shape[1], a.shape[1], 1, device=a.device)
            a, b = a[:, first], b[:, second]
        constants = wigner_3j(*problem.degrees(path)) * path.coefficient
        sizes = {
            "u": a.shape[1],
            "v": b.shape[1],
            "q": a.shape[1],
            "w": problem.multiplicities(path)[2],
        }
        w = x2.new_ones([sizes[letter] for letter in letters_weight])
        if path.has_weight and weight is not None:
            w = weight[..., path.weight_slice].reshape(*weight.shape[:-1], *path.weight_shape)
        rows = "z" if w.ndim > len(letters_weight) else ""
        result = torch.einsum(
            f"z{letters1}i,z{letters2}j,ijk,{rows}{letters_weight}->z{letters_out}k",
            a, b, constants.to(a), w,
        )  # fmt: skip
        columns = problem.irreps_out.slices()[path.i_out]
        out[:, columns] = out[:, columns] + result.flatten(1)
    if graph is not None:
        out = out.new_zeros(graph.num_dst, out.shape[1]).index_add(0, graph.edge_dst, out)
    return to_layout(out, problem.irreps_out, "mul_ir", layout)


def _blocks(x: Tensor, irreps: Irreps) -> list[Tensor]:
    return [
        x[:, columns].reshape(x.shape[0], mul, ir.dim)
        for (mul, ir), columns in zip(irreps, irreps.slices(), strict=True)
    ]
