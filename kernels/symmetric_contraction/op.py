"""Symmetric contraction: the public function."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int64
from torch import Tensor

from eqtp.backend import Backend
from eqtp.kernels.codegen.polynomial_dispatch import evaluate
from eqtp.kernels.symmetric_contraction._torch import symmetric_contraction_torch
from eqtp.kernels.symmetric_contraction.reference import symmetric_contraction_reference
from eqtp.layout import Layout
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["symmetric_contraction"]

_IN_TORCH: dict[str, Callable[..., Tensor]] = {
    "torch": symmetric_contraction_torch,
    "reference": symmetric_contraction_reference,
}


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
        TypeError: element is no index, or x and weight are not of one floating dtype.
        NotImplementedError: The backend has no such kernel.

    Example:
        >>> problem = SymmetricContractionProblem.from_irreps("2x0e+2x1o", "2x0e", 2)
        >>> x, weight = torch.randn(5, 8), torch.randn(3, problem.num_paths, 2)
        >>> symmetric_contraction(x, weight, torch.tensor([0, 2, 2, 0, 1]), problem).shape
        torch.Size([5, 2])
    """
    return evaluate(
        *(x, weight, element, problem),
        layout=layout,
        backend=backend,
        family="symmetric_contraction",
        in_torch=_IN_TORCH,
    )
