"""Symmetric contraction: the public function, validation and dispatch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eqtp.backend import Backend, resolve
from eqtp.compiling import constant_when_compiled
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.codegen.polynomial_operands import check_elements, check_operands
from eqtp.kernels.codegen.polynomial_ops import contract
from eqtp.kernels.symmetric_contraction._cpu import DTYPES
from eqtp.kernels.symmetric_contraction._torch import symmetric_contraction_torch
from eqtp.kernels.symmetric_contraction._triton import why_unsupported
from eqtp.kernels.symmetric_contraction.reference import symmetric_contraction_reference
from eqtp.layout import Layout, check_layout
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["IMPLEMENTED", "symmetric_contraction"]

_IN_TORCH: dict[str, Callable[..., Tensor]] = {
    "torch": symmetric_contraction_torch,
    "reference": symmetric_contraction_reference,
}
IMPLEMENTED = ("triton", "cpu", *_IN_TORCH)


def symmetric_contraction(
    x: Float[Tensor, "num_nodes dim_in"],
    weight: Float[Tensor, "num_elements num_paths num_channels"],
    element: Int64[Tensor, " num_nodes"],
    problem: SymmetricContractionProblem,
    *,
    layout: Layout = "mul_ir",
    backend: Backend = "auto",
) -> Float[Tensor, "num_nodes dim_out"]:
    """Computes element-dependent equivariant polynomials of every node's features.

    out[n, c, M] = sum_nu sum_k weight[element(n), k, c] sum_i U_nu[M, i1 ... i_nu, k] x[n, c, i1]
    ... x[n, c, i_nu] for every block of irreps_out, nu = 1 ... correlation, U_nu the orthonormal
    symmetric couplings. Source: Batatia et al., NeurIPS 2022, arXiv:2206.07697, equations 10, 11.

    Args:
        x: Features of the nodes.
        weight: Weights, paths in the order of `problem.couplings()`.
        element: Row of weight that each node uses.
        problem: The irreps and the correlation.
        layout: Memory order of x and of the result.
        backend: "auto", "triton", "cpu", "torch" or "reference".

    Returns:
        The polynomials; differentiable in x and weight to any order.

    Raises:
        ValueError: A shape does not fit, an element is out of range, devices differ.
        TypeError: element is not int64, or x and weight are not of one floating dtype.
        NotImplementedError: The backend has no such kernel.

    Example:
        >>> problem = SymmetricContractionProblem.from_irreps("2x0e+2x1o", "2x0e", 2)
        >>> x, weight = torch.randn(5, 8), torch.randn(3, problem.num_paths, 2)
        >>> symmetric_contraction(x, weight, torch.tensor([0, 2, 2, 0, 1]), problem).shape
        torch.Size([5, 2])
    """
    check_layout(layout)
    kernel, text, num_paths = _choose(problem, backend, x.dtype, x.device.type)
    check_operands(x, weight, element, problem, num_paths)
    if kernel in _IN_TORCH:
        check_elements(element, weight.shape[0])
        return _IN_TORCH[kernel](x, weight, element, problem, layout=layout)
    return contract(x, weight, element, problem, layout, text, f"symmetric_contraction._{kernel}")


@constant_when_compiled
def _choose(
    problem: SymmetricContractionProblem, backend: Backend, dtype: torch.dtype, device: str
) -> tuple[str, str, int]:
    """The backend that computes a contraction, the contraction as a text, its number of paths."""
    resolution = resolve(
        backend,
        family="symmetric_contraction",
        implemented=IMPLEMENTED,
        device=device,
        why_not=lambda name: _why_not(name, problem, dtype),
    )
    return resolution.backend, problem.text, problem.num_paths


def _why_not(backend: str, problem: SymmetricContractionProblem, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run a call of this dtype, None where it can."""
    if backend == "cpu" and dtype not in DTYPES:
        return f"it computes in float32 and float64, got {dtype}"
    obstacle = why_unavailable(backend)
    if backend == "triton" and obstacle is None:
        obstacle = why_unsupported(problem, dtype)
    return obstacle
