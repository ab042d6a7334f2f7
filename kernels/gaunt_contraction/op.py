"""Many-body Gaunt product: the public function."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int64
from torch import Tensor

from eqtp.backend import Backend
from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen.polynomial_dispatch import evaluate
from eqtp.kernels.gaunt_contraction._torch import gaunt_contraction_torch
from eqtp.kernels.gaunt_contraction.reference import gaunt_contraction_reference
from eqtp.layout import Layout

__all__ = ["gaunt_contraction"]

_IN_TORCH: dict[str, Callable[..., Tensor]] = {
    "torch": gaunt_contraction_torch,
    "reference": gaunt_contraction_reference,
}


def gaunt_contraction(
    x: Float[Tensor, "num_nodes dim_in"],
    weight: Float[Tensor, "num_elements num_weights num_channels"],
    element: Int64[Tensor, " num_nodes"],
    problem: GauntContractionProblem,
    *,
    layout: Layout = "mul_ir",
    backend: Backend = "auto",
) -> Float[Tensor, "num_nodes dim_out"]:
    """Computes weighted powers of every node's features, taken as a function on the sphere.

    out_L = sum_k w_k n_k(L) P_L(f_k * V_k B_k-1), see `GauntContractionProblem`: with f(r) = sum_b
    u_b x_b . Y_b(r) the flat form is out_L = sum_k w_k n_k(L) P_L(f^k). All products are taken on
    one grid that is exact. Source: Luo et al., ICLR 2024, arXiv:2401.10216, equations 5 and 10.

    Args:
        x: Features of the nodes.
        weight: Weights, in the order of the problem.
        element: Row of weight that each node uses.
        problem: The irreps, the correlation and the form.
        layout: Memory order of x and of the result.
        backend: "auto", "triton", "cpu", "torch" or "reference".

    Returns:
        The powers; differentiable in x and weight to any order.

    Raises:
        ValueError: A shape does not fit, an element is out of range, devices differ.
        TypeError: element is no index, or x and weight are not of one floating dtype.
        NotImplementedError: The backend has no such kernel.

    Example:
        >>> problem = GauntContractionProblem.from_irreps("2x0e+2x1o", "2x0e", 2)
        >>> x, weight = torch.randn(5, 8), torch.randn(3, problem.num_weights, 2)
        >>> gaunt_contraction(x, weight, torch.tensor([0, 2, 2, 0, 1]), problem).shape
        torch.Size([5, 2])
    """
    return evaluate(
        *(x, weight, element, problem),
        layout=layout,
        backend=backend,
        family="gaunt_contraction",
        in_torch=_IN_TORCH,
    )
