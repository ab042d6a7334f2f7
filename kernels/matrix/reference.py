"""The definition of operations on 3x3 matrices in compact storage.

X[a, b] = sum_m x[m] B[m, a, b] with the nine matrices B of `eqtp.so3.matrix_basis(1)`: a row of x
is [9, channels], degree 0, then 1, then 2. B is orthonormal: ||X||^2 is the sum of squares of x.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.so3.matrix_basis import matrix_basis

__all__ = ["Kind", "matrix_normalize", "matrix_product"]

Kind = Literal["product", "commutator", "anticommutator"]


def matrix_product(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "rows dim"],
    kind: Kind,
    transpose_x: bool = False,
    transpose_y: bool = False,
) -> Float[Tensor, "rows dim"]:
    """``X Y``, ``X Y - Y X`` or ``X Y + Y X`` of every row and channel."""
    basis = matrix_basis(1).to(x)
    left = torch.einsum("nmc,mab->nabc", _components(x), basis)
    right = torch.einsum("nmc,mab->nabc", _components(y), basis)
    left = left.transpose(1, 2) if transpose_x else left
    right = right.transpose(1, 2) if transpose_y else right
    out = torch.einsum("nabc,nbdc->nadc", left, right)
    if kind != "product":
        reverse = torch.einsum("nabc,nbdc->nadc", right, left)
        out = out + reverse if kind == "anticommutator" else out - reverse
    return torch.einsum("nadc,mad->nmc", out, basis).reshape(x.shape)


def matrix_normalize(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """``X / (||X||^2 + 1)`` of every row and channel."""
    components = _components(x)
    return (components / (components.square().sum(1, keepdim=True) + 1)).reshape(x.shape)


def _components(x: Tensor) -> Tensor:
    return x.view(len(x), 9, x.shape[1] // 9)
