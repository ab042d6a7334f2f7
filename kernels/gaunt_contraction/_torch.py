"""Many-body Gaunt product in plain PyTorch, on a grid, in pieces that fit into the cache.

    F_k = S (u_k x)                    values of f_k on the grid
    flat        F^k                    B_k on the grid
    iterated    F_k * S(v_k B_k-1)     B_k on the grid, and B_k = A of it
    out_L      += w_k n_k(L) A_L (B_k on the grid)

Autograd differentiates it to any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.gaunt_contraction.config import TORCH_MAX_BYTES
from eqtp.kernels.gaunt_contraction.reference import block_of_component, harmonic_of_component
from eqtp.layout import Layout, to_layout
from eqtp.so3.sphere_grid import analysis_matrix, sphere_grid, synthesis_matrix

__all__ = ["gaunt_contraction_torch"]


def gaunt_contraction_torch(
    x: Float[Tensor, "num_nodes dim_in"],
    weight: Float[Tensor, "num_elements num_weights num_channels"],
    element: Int64[Tensor, " num_nodes"],
    problem: GauntContractionProblem,
    *,
    layout: Layout = "mul_ir",
) -> Float[Tensor, "num_nodes dim_out"]:
    """The op on any device; same arguments as the reference."""
    tables = _tables(problem, x.dtype, x.device)
    channels = problem.num_channels
    rows = to_layout(x, problem.irreps_in, layout, "ir_mul").view(-1, problem.dim_in, channels)
    bytes_per_node = tables.synthesis_in.shape[0] * channels * x.element_size()
    pieces = rows.split(max(1, TORCH_MAX_BYTES // bytes_per_node))
    elements = element.split(max(1, TORCH_MAX_BYTES // bytes_per_node))
    results = [
        _contract(piece, weight.index_select(0, e), tables)
        for piece, e in zip(pieces, elements, strict=True)
    ]
    out = torch.cat(results).flatten(1)
    return to_layout(out, problem.irreps_out, "ir_mul", layout)


@dataclass(frozen=True, eq=False)
class _Tables:
    """Constants of a problem on a device.

    Attributes:
        problem: The product.
        synthesis_in: Harmonics of every component of x on the grid, [points, dim_in].
        synthesis: Harmonics of intermediates on the grid, [points, harmonics].
        analysis: Projection onto them, [harmonics, points].
        analysis_out: Projection onto the components of the result, [dim_out, points].
        u: Row of the weight u_k of every component of x, per power.
        v: Row of the weight v_k of every component of B_k-1, per power; None where there is none.
        w: Row of the weight w_k of every component of the result, per power.
        norm: n_k of every component of the result, [correlation, dim_out, 1].
    """

    problem: GauntContractionProblem
    synthesis_in: Tensor
    synthesis: Tensor
    analysis: Tensor
    analysis_out: Tensor
    u: list[Tensor]
    v: list[Tensor | None]
    w: list[Tensor]
    norm: Tensor


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached must serve later calls that record gradients
def _tables(problem: GauntContractionProblem, dtype: torch.dtype, device: torch.device) -> _Tables:
    grid = sphere_grid(problem.grid_degree)
    lmax = max(*problem.degrees_in, *problem.degrees_out)
    synthesis, analysis = synthesis_matrix(grid, lmax), analysis_matrix(grid, lmax)
    blocks_in, blocks_out = map(block_of_component, (problem.degrees_in, problem.degrees_out))

    def index(rows: list[int]) -> Tensor:
        return torch.tensor(rows, device=device)

    def real(table: Tensor) -> Tensor:
        return table.to(device, dtype).contiguous()

    powers = range(1, problem.correlation + 1)
    return _Tables(
        problem=problem,
        synthesis_in=real(synthesis[:, harmonic_of_component(problem.degrees_in)]),
        synthesis=real(synthesis),
        analysis=real(analysis),
        analysis_out=real(analysis[harmonic_of_component(problem.degrees_out)]),
        u=[index([problem.input_weights(k).start + block for block in blocks_in]) for k in powers],
        v=[
            index(
                [
                    problem.step_weights(k).start + degree
                    for degree in block_of_component(range(problem.limit(k - 1) + 1))
                ]
            )
            if problem.has_step(k)
            else None
            for k in powers
        ],
        w=[index([problem.power_weights(b).start + k - 1 for b in blocks_out]) for k in powers],
        norm=real(torch.tensor(problem.norm, dtype=torch.float64).T[:, blocks_out, None]),
    )


def _contract(x: Tensor, weight: Tensor, tables: _Tables) -> Tensor:
    """The product of some nodes: x [n, dim_in, C] and the nodes' weights [n, num_weights, C]."""
    problem = tables.problem
    f = values = tables.synthesis_in @ (weight[:, tables.u[0]] * x)
    out = torch.zeros(())
    for k in range(problem.correlation):
        step = tables.v[k]
        if step is not None:
            b = weight[:, step] * (tables.analysis[: len(step)] @ values)
            f = tables.synthesis_in @ (weight[:, tables.u[k]] * x)
            values = f * (tables.synthesis[:, : len(step)] @ b)
        elif k > 0:
            values = f * values
        part = tables.norm[k] * weight[:, tables.w[k]] * (tables.analysis_out @ values)
        out = part if k == 0 else out + part
    return out
