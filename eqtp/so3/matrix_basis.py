"""Orthonormal matrices that transform like spherical components of each degree."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from eqtp.so3.clebsch_gordan import wigner_3j

__all__ = ["matrix_basis"]


@lru_cache(maxsize=64)
def matrix_basis(j: int) -> Float64[Tensor, "size size_rows size_columns"]:
    """The (2j+1)^2 matrices that degrees 0 ... 2j stand for, one after the other.

        B[l m, a, b] = sqrt(2l+1) w3j(l, j, j)[m, a, b],   X[a, b] = sum_lm x[l m] B[l m, a, b]

    They are orthonormal, <B, B'> = sum_ab B[a, b] B'[a, b]; symmetric for even l, antisymmetric
    for odd l; and a rotation of x is X -> D X D^T with the rotation D of degree j. For j = 1 a
    multiple c E of the unit matrix is degree 0 with component sqrt(3) c, and the matrix of the
    cross product with v, X u = v x u, is degree 1 with components -sqrt(2) v.

    Args:
        j: Degree of the matrices' rows and columns.

    Returns:
        The matrices, not to be changed.

    Raises:
        ValueError: j is negative.

    Example:
        >>> matrix_basis(1)[0].mul(3**0.5).round(decimals=12)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """
    if j < 0:
        raise ValueError(f"matrix_basis needs a degree j >= 0, got {j}")
    blocks = [math.sqrt(2 * l + 1) * wigner_3j(l, j, j) for l in range(2 * j + 1)]
    return torch.cat(blocks)
