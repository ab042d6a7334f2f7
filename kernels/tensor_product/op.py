"""The general tensor product. Definition: reference.py; the others: _cpu, _torch, _triton."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.backend import Backend, resolve
from eqtp.compiling import constant_when_compiled
from eqtp.graph import Graph
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.codegen.edges import edges_of
from eqtp.kernels.codegen.triton_device import why_not_dtype
from eqtp.kernels.tensor_product import _ops, reference
from eqtp.kernels.tensor_product.config import TRITON_MAX_CONSTANTS
from eqtp.layout import Layout, check_layout, to_layout
from eqtp.operands import check_alike
from eqtp.operators import is_autocast, widest
from eqtp.problem import TensorProductProblem

__all__ = ["IMPLEMENTED", "tensor_product", "validate", "why_not"]

IMPLEMENTED = ("triton", "cpu", "torch", "reference")


def tensor_product(
    x1: Float[Tensor, "rows_in1 dim1"],
    x2: Float[Tensor, "rows dim2"],
    weight: Float[Tensor, "*rows weight_numel"] | None,
    problem: TensorProductProblem,
    *,
    graph: Graph | None = None,
    layout: Layout = "mul_ir",
    backend: Backend = "auto",
) -> Float[Tensor, "rows_out dim_out"]:
    """Tensor product of any paths and modes.

        out[z, W, k] += coefficient * sum w3j[i, j, k] * weight[z, ...] * x1[z, U, i] * x2[z, V, j]

    O(3)-equivariant; linear in x1, x2 and weight; differentiable to any order.

    Args:
        x1: First operand, one row per row of x2; with a graph one row per sender.
        x2: Second operand; with a graph one row per edge.
        weight: Flat path weights, one vector for all rows or one per row (edge); None for a
            product without weights.
        problem: What to compute.
        graph: Message passing: x1 is taken at the senders, results are summed at the receivers.
        layout: Memory order of x1, x2 and the result.
        backend: Which implementation runs.

    Returns:
        One row per row of x2; with a graph one row per receiver. Columns as `irreps_out`.

    Raises:
        ValueError: A shape, layout or backend name breaks the rules above.
        TypeError: Operands differ in dtype or device, or are not floating-point tensors.
        NotImplementedError: The backend was asked for by name and cannot serve.

    Example:
        >>> import torch
        >>> problem = TensorProductProblem.from_instructions(
        ...     "2x1o", "1x1o", "2x0e", [(0, 0, 0, "uvu", True)])
        >>> x1, x2 = torch.ones(1, 6), torch.ones(1, 3)
        >>> tensor_product(x1, x2, torch.tensor([1.0, 2.0]), problem)
        tensor([[1.7321, 3.4641]])
    """
    check_layout(layout)
    if is_autocast(x1):
        x1, x2, weight = widest((x1, x2, weight))
    validate(x1, x2, weight, problem, graph)
    kernel, text = _choose(problem, backend, x1.dtype, x1.device.type)
    if kernel == "reference":
        return reference.tensor_product(x1, x2, weight, problem, graph=graph, layout=layout)
    inner: Layout = layout if kernel == "cpu" else "ir_mul"  # the C++ kernel takes any layout
    out = _ops.product(
        to_layout(x1, problem.irreps_in1, layout, inner),
        to_layout(x2, problem.irreps_in2, layout, inner),
        None if weight is None or weight.shape[-1] == 0 else weight,
        (
            edges_of(graph, kernel),
            x2.shape[0] if graph is None else graph.num_dst,
            text,
            kernel,
            inner,
        ),
    )
    return to_layout(out, problem.irreps_out, inner, layout)


@constant_when_compiled
def _choose(
    problem: TensorProductProblem, backend: Backend, dtype: torch.dtype, device: str
) -> tuple[str, str]:
    """The backend that computes a product, and the product as a text."""
    chosen = resolve(
        backend,
        family="tensor_product",
        implemented=IMPLEMENTED,
        device=device,
        why_not=lambda name: why_not(name, problem, dtype),
    )
    return chosen.backend, problem.text


def why_not(backend: str, problem: TensorProductProblem, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run a product of a dtype; None where it can."""
    if backend == "cpu" and dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 or float64, got {dtype}"
    if backend == "triton" and (obstacle := why_not_dtype(dtype)) is not None:
        return obstacle
    if backend == "triton" and problem.num_constants > TRITON_MAX_CONSTANTS:
        return (
            f"its code is unrolled and takes at most {TRITON_MAX_CONSTANTS} constants that are not "
            f"zero, this product has {problem.num_constants}"
        )
    return why_unavailable(backend)


def validate(
    x1: Tensor,
    x2: Tensor,
    weight: Tensor | None,
    problem: TensorProductProblem,
    graph: Graph | None,
) -> None:
    """Refuses operands that do not fit the problem or each other.

    Raises:
        ValueError: A shape is wrong.
        TypeError: A dtype or device is wrong.
    """
    dim1, dim2, weight_numel = _sizes(problem)
    for name, x, dim in (("x1", x1, dim1), ("x2", x2, dim2)):
        _check_tensor(name, x)
        if x.ndim != 2 or x.shape[1] != dim:
            irreps = problem.irreps_in1 if name == "x1" else problem.irreps_in2
            raise ValueError(
                f"{name} must have {dim} columns (irreps_in{name[1]}='{irreps}'), "
                f"got shape {tuple(x.shape)}"
            )
    if graph is None:
        if x1.shape[0] != x2.shape[0]:
            raise ValueError(
                "x1 and x2 must have as many rows, or pass graph= for message passing, "
                f"got shapes {tuple(x1.shape)} and {tuple(x2.shape)}"
            )
    elif x1.shape[0] != graph.num_src or x2.shape[0] != graph.num_edges:
        raise ValueError(
            f"with this graph x1 must have {graph.num_src} rows (senders) and x2 "
            f"{graph.num_edges} rows (edges), got shapes {tuple(x1.shape)} and {tuple(x2.shape)}"
        )
    _check_weight(weight, weight_numel, x2.shape[0])
    check_alike(x1=x1, x2=x2, weight=weight)
    if graph is not None and graph.device != x1.device:
        raise TypeError(f"x1 and graph must be on one device, got {x1.device} and {graph.device}")


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}")


@constant_when_compiled
def _sizes(problem: TensorProductProblem) -> tuple[int, int, int]:
    """Columns of x1, of x2 and of the weights."""
    return problem.dims[:3]


def _check_weight(weight: Tensor | None, numel: int, rows: int) -> None:
    if weight is None:
        if numel > 0:
            raise ValueError(
                f"weight must be given: the product has {numel} weights; pass [{numel}] or "
                f"[{rows}, {numel}]"
            )
        return
    _check_tensor("weight", weight)
    if numel == 0 and weight.numel() > 0:
        raise ValueError(
            f"weight must be None for a product without weights, got shape {tuple(weight.shape)}"
        )
    expected = (numel,) if weight.ndim == 1 else (rows, numel)
    if weight.ndim != len(expected) or tuple(weight.shape) != expected:
        raise ValueError(
            f"weight must have shape [{numel}] (shared) or [{rows}, {numel}] (one per row), "
            f"got {tuple(weight.shape)}"
        )
