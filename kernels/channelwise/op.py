"""Channelwise tensor product. Definition: reference.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.backend import Backend, resolve
from eqtp.compiling import constant_when_compiled
from eqtp.graph import Graph
from eqtp.kernels.channelwise import _ops, reference
from eqtp.kernels.channelwise.config import MAX_CONSTANTS
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.codegen.edges import edges_of
from eqtp.kernels.tensor_product.op import validate
from eqtp.layout import Layout, to_layout
from eqtp.operands import check_alike
from eqtp.operators import is_autocast, widest
from eqtp.problem import TensorProductProblem

__all__ = ["IMPLEMENTED", "channelwise_tensor_product", "supports", "why_not"]

IMPLEMENTED = ("triton", "cpu", "torch", "reference")


def supports(problem: TensorProductProblem) -> bool:
    """Whether every path is "uvu" with one channel in x2, as in MACE, NequIP and SevenNet."""
    return len(problem.paths) > 0 and all(
        path.mode == "uvu" and problem.irreps_in2[path.i_in2].mul == 1 for path in problem.paths
    )


def channelwise_tensor_product(
    x1: Float[Tensor, "num_src dim1"],
    x2: Float[Tensor, "rows dim2"],
    weight: Float[Tensor, "*rows weight_numel"] | None,
    problem: TensorProductProblem,
    *,
    radial: tuple[Float[Tensor, "rows hidden"], Float[Tensor, "hidden weight_numel"]] | None = None,
    graph: Graph | None = None,
    layout: Layout = "mul_ir",
    backend: Backend = "auto",
) -> Float[Tensor, "num_dst dim_out"]:
    """Channelwise ("uvu") tensor product of two equivariant features.

        out[e, u, k] = sum_path c_path weight[e, path, u] sum_ij w3j[i, j, k] x1[e, u, i] x2[e, j]

    O(3)-equivariant; linear in x1, x2 and weight; differentiable to any order. With a graph the
    edges' results are summed at their receivers in a fixed order: equal from run to run.

    Args:
        x1: Features of the rows, or of the senders when a graph is given.
        x2: One channel per irrep, e.g. the spherical harmonics of each edge.
        weight: Flat weights per row, or one set [weight_numel] for all; None without weights.
        problem: The paths; `supports(problem)` must hold.
        radial: Pair (hidden, matrix) that stands for weight = hidden @ matrix.
        graph: Edges for gather - product - sum; None for row by row.
        layout: Layout of x1, x2 and the result.
        backend: See `eqtp.backend`.

    Returns:
        Blocks of problem.irreps_out.

    Raises:
        ValueError: Shapes disagree with the problem or the graph, or a path is not channelwise.
        TypeError: The dtypes differ.

    Example:
        >>> problem = TensorProductProblem.from_instructions(
        ...     "4x0e", "0e+1o", "4x1o", [(0, 1, 0, "uvu", True)])
        >>> x1, x2, weight = torch.ones(2, 4), torch.ones(2, 4), torch.ones(2, 4)
        >>> channelwise_tensor_product(x1, x2, weight, problem).shape
        torch.Size([2, 12])
    """
    if is_autocast(x2):
        x1, x2, weight, *pair = widest((x1, x2, weight, *(radial or ())))
        radial = (pair[0], pair[1]) if pair else None
    kernel, text = _choose(problem, backend, x2.dtype, x2.device.type)
    w, matrix = weight, None
    if radial is not None:
        _validate_radial(*radial)
        w, matrix = radial if _ops.takes_radial(kernel) else (_matrix_product(*radial), None)
    if w is not None and matrix is not None:  # the weights' shape, without the weights
        validate(x1, x2, w.new_empty(1, 1).expand(w.shape[0], matrix.shape[1]), problem, graph)
    else:
        validate(x1, x2, w, problem, graph)
    if kernel == "reference":
        return reference.channelwise_tensor_product(x1, x2, w, problem, graph=graph, layout=layout)
    out = _ops.product(
        to_layout(x1, problem.irreps_in1, layout, "ir_mul"),
        x2,
        w[None] if w is not None and w.ndim == 1 else w,
        matrix,
        edges_of(graph, kernel),
        x2.shape[0] if graph is None else graph.num_dst,
        text,
        kernel,
    )
    return to_layout(out, problem.irreps_out, "ir_mul", layout)


@constant_when_compiled
def _choose(
    problem: TensorProductProblem, backend: Backend, dtype: torch.dtype, device: str
) -> tuple[str, str]:
    """The backend that computes a product, and the product as a text."""
    if not supports(problem):
        raise ValueError(
            "a channelwise product takes 'uvu' paths with mul 1 in irreps_in2, got "
            f"irreps_in2='{problem.irreps_in2}' and modes "
            f"{sorted({path.mode for path in problem.paths})}; use tensor_product"
        )
    chosen = resolve(
        backend,
        family="channelwise",
        implemented=IMPLEMENTED,
        device=device,
        why_not=lambda name: why_not(name, problem, dtype),
    ).backend
    return chosen, problem.text


def _validate_radial(hidden: Tensor, matrix: Tensor) -> None:
    shapes = tuple(hidden.shape), tuple(matrix.shape)
    if hidden.ndim != 2 or matrix.ndim != 2 or hidden.shape[1] != matrix.shape[0]:
        raise ValueError(f"radial must be (hidden [rows, H], matrix [H, weights]), got {shapes}")
    check_alike(hidden=hidden, matrix=matrix)


def _matrix_product(hidden: Tensor, matrix: Tensor) -> Tensor:
    """The product in the operands' dtype, also under autocast."""
    if not is_autocast(hidden):
        return hidden @ matrix
    with torch.autocast(hidden.device.type, enabled=False):
        return hidden @ matrix


def why_not(backend: str, problem: TensorProductProblem, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run a channelwise product; None where it can."""
    if backend == "cpu" and dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 or float64, got {dtype}"
    obstacle = why_unavailable(backend)
    if backend in ("cpu", "triton") and problem.num_constants > MAX_CONSTANTS:
        return (
            f"its code is unrolled and takes at most {MAX_CONSTANTS} constants that are not zero, "
            f"this product has {problem.num_constants}"
        )
    if backend == "triton" and obstacle is None:
        from eqtp.kernels.channelwise import _triton  # only where it is going to be used

        obstacle = _triton.why_unsupported(problem, dtype)
    return obstacle
