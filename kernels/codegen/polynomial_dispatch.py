"""What public functions of polynomials of node features do: choose the backend, check, call.

The kernels of a family are its modules `_cpu` and `_triton`, see `polynomial_ops`; the latter has a
function `why_unsupported` from a problem and a dtype to a reason, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

import torch
from torch import Tensor

from eqtp.backend import Backend, resolve
from eqtp.compiling import constant_when_compiled
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.codegen.polynomial_operands import (
    PolynomialProblem,
    check_elements,
    check_operands,
)
from eqtp.kernels.codegen.polynomial_ops import contract
from eqtp.layout import Layout, check_layout

__all__ = ["evaluate"]

_CPU_DTYPES = (torch.float32, torch.float64)


def evaluate(
    x: Tensor,
    weight: Tensor,
    element: Tensor,
    problem: PolynomialProblem,
    *,
    layout: Layout,
    backend: Backend,
    family: str,
    in_torch: Mapping[str, Callable[..., Tensor]],
) -> Tensor:
    """The polynomials by the backend that is asked for.

    Args:
        x: Features of the nodes.
        weight: Weights.
        element: Row of weight that each node uses.
        problem: The polynomials.
        layout: Memory order of x and of the result.
        backend: Name of a backend, or "auto".
        family: Name of the kernel family.
        in_torch: Its backends "torch" and "reference": functions of (x, weight, element, problem,
            layout=...).

    Raises:
        ValueError: A shape does not fit, an element is out of range, devices differ.
        TypeError: element is no index, or x and weight are not of one floating dtype.
        NotImplementedError: The backend has no such kernel.
    """
    check_layout(layout)
    kernel, text, num_weights = _choose(family, problem, backend, x.dtype, x.device.type)
    element = element.long() if element.dtype == torch.int32 else element
    check_operands(x, weight, element, problem, num_weights)
    if kernel in in_torch:
        check_elements(element, weight.shape[0])
        return in_torch[kernel](x, weight, element, problem, layout=layout)
    return contract(x, weight, element, problem, layout, text, f"{family}._{kernel}")


@constant_when_compiled
def _choose(
    family: str, problem: PolynomialProblem, backend: Backend, dtype: torch.dtype, device: str
) -> tuple[str, str, int]:
    """The backend that computes polynomials, the problem as a text, its number of weights."""
    resolution = resolve(
        backend,
        family=family,
        implemented=("triton", "cpu", "torch", "reference"),
        device=device,
        why_not=lambda name: _why_not(name, family, problem, dtype),
    )
    return resolution.backend, problem.text, problem.num_weights


def _why_not(
    backend: str, family: str, problem: PolynomialProblem, dtype: torch.dtype
) -> str | None:
    """Why a backend cannot run a call of this dtype, None where it can."""
    if backend == "cpu" and dtype not in _CPU_DTYPES:
        return f"it computes in float32 and float64, got {dtype}"
    obstacle = why_unavailable(backend)
    if backend == "triton" and obstacle is None:
        triton = import_module(f"eqtp.kernels.{family}._triton")
        reason: str | None = triton.why_unsupported(problem, dtype)
        return reason
    return obstacle
