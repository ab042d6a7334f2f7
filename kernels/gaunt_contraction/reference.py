"""Many-body Gaunt product: the definition, in dense Gaunt coefficients and without a grid.

    B_1 = u_1 x,    B_k[K] = sum_IJ G[I, J, K] (u_k x)[I] (v_k B_k-1)[J],
    out_L = sum_k w_k n_k(L) B_k[L],

with G[I, J, K] the mean over the sphere of three component-normalised harmonics, degrees of B_k up
to `problem.limit(k)`, and the weights u, v, w of the node's element; `GauntContractionProblem` says
which they are. Source: Luo et al., ICLR 2024, arXiv:2401.10216, equations 5 and 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.layout import Layout, to_layout
from eqtp.so3.gaunt_coefficients import gaunt

__all__ = ["block_of_component", "gaunt_contraction_reference", "harmonic_of_component"]


def gaunt_contraction_reference(
    x: Float[Tensor, "num_nodes dim_in"],
    weight: Float[Tensor, "num_elements num_weights num_channels"],
    element: Int64[Tensor, " num_nodes"],
    problem: GauntContractionProblem,
    *,
    layout: Layout = "mul_ir",
) -> Float[Tensor, "num_nodes dim_out"]:
    """The formula above; same arguments as `gaunt_contraction`."""
    channels, lmax = problem.num_channels, max(problem.degrees_in)
    rows = to_layout(x, problem.irreps_in, layout, "ir_mul").view(-1, problem.dim_in, channels)
    weights = weight[element]  # [num_nodes, num_weights, channels]
    blocks_in, blocks_out = map(block_of_component, (problem.degrees_in, problem.degrees_out))
    harmonics_in, harmonics_out = (
        torch.tensor(harmonic_of_component(degrees), device=x.device)
        for degrees in (problem.degrees_in, problem.degrees_out)
    )
    out, b = x.new_zeros(len(x), problem.dim_out, channels), x.new_zeros(0)
    for power in range(1, problem.correlation + 1):
        start = problem.input_weights(power).start
        ux = weights[:, [start + block for block in blocks_in]] * rows
        f = x.new_zeros(len(x), (lmax + 1) ** 2, channels).index_add(1, harmonics_in, ux)
        if problem.has_step(power):
            start, degrees = problem.step_weights(power).start, range(problem.limit(power - 1) + 1)
            b = b * weights[:, [start + degree for degree in block_of_component(degrees)]]
        coefficients = gaunt_tensor(lmax, problem.limit(power - 1), problem.limit(power))
        b = f if power == 1 else torch.einsum("ijk,nic,njc->nkc", coefficients.to(x), f, b)
        w = weights[:, [problem.power_weights(block).start + power - 1 for block in blocks_out]]
        norm = torch.tensor([problem.norm[block][power - 1] for block in blocks_out]).to(x)
        reached = torch.nn.functional.pad(b, (0, 0, 0, (max(problem.degrees_out) + 1) ** 2))
        out = out + norm[:, None] * w * reached[:, harmonics_out]
    return to_layout(out.flatten(1), problem.irreps_out, "ir_mul", layout)


def block_of_component(degrees: Iterable[int]) -> list[int]:
    """The block that every component of some blocks belongs to."""
    return [block for block, degree in enumerate(degrees) for _ in range(2 * degree + 1)]


def harmonic_of_component(degrees: Iterable[int]) -> list[int]:
    """The index l^2 + l + m of every component of some blocks."""
    return [i for degree in degrees for i in range(degree**2, (degree + 1) ** 2)]


def gaunt_tensor(l1: int, l2: int, l3: int) -> Float64[Tensor, "first second third"]:
    """Means over the sphere of three component-normalised harmonics of degrees up to l1, l2, l3."""
    result = torch.zeros((l1 + 1) ** 2, (l2 + 1) ** 2, (l3 + 1) ** 2, dtype=torch.float64)
    for i in range(l1 + 1):
        for j in range(l2 + 1):
            for k in range(l3 + 1):
                block = math.sqrt(4 * math.pi) * gaunt(i, j, k)
                result[i * i : (i + 1) ** 2, j * j : (j + 1) ** 2, k * k : (k + 1) ** 2] = block
    return result
