"""Operands of the kernel families of polynomials of node features, and their checks.

Such an op takes x [num_nodes, dim_in], weights [num_elements, num_weights, channels] and the
element of every node, whose row of the weights the node uses.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from eqtp.compiling import constant_when_compiled
from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["PolynomialProblem", "check_elements", "check_operands"]


PolynomialProblem: TypeAlias = GauntContractionProblem | SymmetricContractionProblem
"""Polynomials of node features, whose channels do not mix, with weights of every element."""


def check_operands(
    x: Tensor, weight: Tensor, element: Tensor, problem: PolynomialProblem, num_weights: int
) -> None:
    """Refuses operands of polynomials that do not fit.

    Args:
        x: Features [num_nodes, problem.irreps_in.dim].
        weight: Weights [num_elements, num_weights, channels].
        element: Element of every node.
        problem: The polynomials.
        num_weights: Number of weights of an element and a channel.

    Raises:
        ValueError: A shape does not fit, devices differ.
        TypeError: element is no index, or x and weight are not of one floating dtype.
    """
    dim, channels = _sizes(problem)
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(
            f"x must have shape (num_nodes, {dim}) "
            f"(irreps_in='{problem.irreps_in}'), got {tuple(x.shape)}"
        )
    if weight.ndim != 3 or weight.shape[1:] != (num_weights, channels):
        raise ValueError(
            f"weight must have shape (num_elements, {num_weights} weights, "
            f"{channels} channels), got {tuple(weight.shape)}"
        )
    if not x.is_floating_point() or x.dtype != weight.dtype:
        raise TypeError(
            f"x and weight must have one floating dtype, got {x.dtype} and {weight.dtype}; "
            "convert one with .to(dtype)"
        )
    if element.dtype != torch.int64:
        raise TypeError(
            f"element must be int32 or int64 indices, got {element.dtype}; for one-hot rows pass "
            "one_hot.argmax(dim=1)"
        )
    if element.shape != x.shape[:1]:
        raise ValueError(
            f"element must have one index per node, shape ({x.shape[0]},), "
            f"got {tuple(element.shape)}"
        )
    if not x.device == weight.device == element.device:
        raise ValueError(
            "x, weight and element must be on one device, "
            f"got {x.device}, {weight.device} and {element.device}"
        )


@constant_when_compiled
def _sizes(problem: PolynomialProblem) -> tuple[int, int]:
    return int(problem.irreps_in.dim), problem.num_channels


def check_elements(element: Tensor, num_elements: int) -> None:
    """Refuses elements without weights, in an op's kernel: a compiled program cannot look at them.

    Raises:
        ValueError: An element is out of range.
    """
    if element.numel():
        low, high = (int(bound) for bound in element.aminmax())
        if low < 0 or high >= num_elements:
            raise ValueError(
                f"element must be in [0, {num_elements}) (num_elements), "
                f"got values from {low} to {high}"
            )
