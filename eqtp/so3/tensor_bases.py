"""Matrices and Cartesian tensors that transform like spherical components."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from eqtp.so3.clebsch_gordan import wigner_3j

__all__ = ["matrix_basis", "traceless_basis"]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept tensors must serve later calls that record gradients
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


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def traceless_basis(degree: int) -> Float64[Tensor, "*shape"]:
    """The 2l+1 symmetric traceless tensors with l indices that a degree l stands for.

        Q_l = +- sqrt(2l+1) w3j(1, l-1, l) (E x Q_{l-1}),   Q_0 = 1,   Q_1 = E

    Orthonormal; a rotation of the components is one of every index, and with the harmonics of unit
    length Q_l n n ... n = sqrt(l! / (2l-1)!!) Y_l(n), which fixes the sign.

    Args:
        degree: l.

    Returns:
        [2l+1, 3, ..., 3], not to be changed.

    Raises:
        ValueError: l is negative.

    Example:
        >>> traceless_basis(2).square().sum((1, 2)).round(decimals=12).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    if degree < 0:
        raise ValueError(f"traceless_basis needs a degree >= 0, got {degree}")
    if degree == 0:
        return torch.ones(1, dtype=torch.float64)
    below = traceless_basis(degree - 1)
    coupling = math.sqrt(2 * degree + 1) * wigner_3j(1, degree - 1, degree)
    tensors = torch.einsum("imk,m...->ki...", coupling, below)
    along_pole = tensors.reshape(2 * degree + 1, -1)[degree, (3**degree - 1) // 2]  # y y ... y
    return tensors if along_pole > 0 else -tensors
