"""Gaunt coefficients: integrals of three real spherical harmonics."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from eqtp.so3.clebsch_gordan import wigner_3j


def gaunt(l1: int, l2: int, l3: int) -> Float64[Tensor, "{2*l1+1} {2*l2+1} {2*l3+1}"]:
    """Computes ``G[ijk] = int Y1_i Y2_j Y3_k`` over the sphere, harmonics "integral"-normalised.

    ``G = K w3j`` with ``K = sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / (4 pi)) w3j[l1, l2, l3]``: the
    entry of the three orders 0 is plus or minus the ordinary symbol ``(l1 l2 l3; 0 0 0)``, and the
    sign cancels in the product. It vanishes for odd ``l1 + l2 + l3``, as the integral does.

    Args:
        l1: first degree.
        l2: second degree.
        l3: third degree; zeros are returned where the triangle rule is violated.

    Returns:
        The coefficients, on the CPU.

    Raises:
        ValueError: a degree is negative.

    Example:
        >>> gaunt(1, 1, 0).mul((4 * math.pi)**0.5)[:, :, 0].round(decimals=12)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """
    dims = (2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1)
    if min(dims) < 0:
        raise ValueError(f"gaunt needs degrees >= 0, got (l1, l2, l3) = ({l1}, {l2}, {l3})")
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        return torch.zeros(dims, dtype=torch.float64, device="cpu")
    w3j = wigner_3j(l1, l2, l3)
    return math.sqrt(math.prod(dims) / (4 * math.pi)) * w3j[l1, l2, l3] * w3j
