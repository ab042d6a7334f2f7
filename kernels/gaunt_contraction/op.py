"""Many-body Gaunt product: the public function, validation and dispatch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eqtp.backend import Backend, resolve
from eqtp.compiling import constant_when_compiled
from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.codegen.polynomial_operands import check_elements, check_operands
from eqtp.kernels.codegen.polynomial_ops import contract
from eqtp.kernels.gaunt_contraction._cpu import DTYPES
from eqtp.kernels.gaunt_contraction._torch import gaunt_contraction_torch
from eqtp.kernels.gaunt_contraction._triton import why_unsupported
from eqtp.kernels.gaunt_contraction.reference import gaunt_contraction_reference
from eqtp.layout import Layout, check_layout

__all__ = ["IMPLEMENTED", "gaunt_contraction"]

_IN_TORCH: dict[str, Callable[..., Tensor]] = {
    "torch": gaunt_contraction_torch,
    "reference": gaunt_contraction_reference,
}
IMPLEMENTED = ("triton", "cpu", *_IN_TORCH)


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
        TypeError: element is not int64, or x and weight are not of one floating dtype.
        NotImplementedError: The backend has no such kernel.

    Example:
        >>> problem = GauntContractionProblem.from_irreps("2x0e+2x1o", "2x0e", 2)
        >>> x, weight = torch.randn(5, 8), torch.randn(3, problem.num_weights, 2)
        >>> gaunt_contraction(x, weight, torch.tensor([0, 2, 2, 0, 1]), problem).shape
        torch.Size([5, 2])
    """
    check_layout(layout)
    kernel, text, num_weights = _choose(problem, backend, x.dtype, x.device.type)
    check_operands(x, weight, element, problem, num_weights)
    if kernel in _IN_TORCH:
        check_elements(element, weight.shape[0])
        return _IN_TORCH[kernel](x, weight, element, problem, layout=layout)
    return contract(x, weight, element, problem, layout, text, f"gaunt_contraction._{kernel}")


@constant_when_compiled
def _choose(
    problem: GauntContractionProblem, backend: Backend, dtype: torch.dtype, device: str
) -> tuple[str, str, int]:
    """The backend that computes a product, the product as a text, its number of weights."""
    resolution = resolve(
        backend,
        family="gaunt_contraction",
        implemented=IMPLEMENTED,
        device=device,
        why_not=lambda name: _why_not(name, problem, dtype),
    )
    return resolution.backend, problem.text, problem.num_weights


def _why_not(backend: str, problem: GauntContractionProblem, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run a call of this dtype, None where it can."""
    if backend == "cpu" and dtype not in DTYPES:
        return f"it computes in float32 and float64, got {dtype}"
    obstacle = why_unavailable(backend)
    if backend == "triton" and obstacle is None:
        obstacle = why_unsupported(problem, dtype)
    return obstacle
