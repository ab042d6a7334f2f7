"""The definition of operations on matrices in compact storage.

X[a, b] = sum_m x[m] B[m, a, b] with the (2j+1)^2 matrices B of `eqtp.so3.matrix_basis(j)`: a row of
x is [(2j+1)^2, channels], degree 0, then 1, to 2j. For j = 1 they are 3x3. B is orthonormal:
||X||^2 is the sum of squares of x.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.so3.tensor_bases import matrix_basis

__all__ = ["Kind", "matrix_normalize", "matrix_product"]

Kind = Literal["product", "commutator", "anticommutator"]


def matrix_product(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "rows dim"],
    kind: Kind,
    transpose_x: bool = False,
    transpose_y: bool = False,
    j: int = 1,
) -> Float[Tensor, "rows dim"]:
    """``X Y``, ``X Y - Y X`` or ``X Y + Y X`` of every row and channel."""
    basis = matrix_basis(j).to(x)
    left, right = (
        torch.einsum("nmc,mab->nabc", one.view(len(x), len(basis), x.shape[1] // len(basis)), basis)
        for one in (x, y)
    )
    left = left.transpose(1, 2) if transpose_x else left
    right = right.transpose(1, 2) if transpose_y else right
    out = torch.einsum("nabc,nbdc->nadc", left, right)
    if kind != "product":
        reverse = torch.einsum("nabc,nbdc->nadc", right, left)
        out = out + reverse if kind == "anticommutator" else out - reverse
    return torch.einsum("nadc,mad->nmc", out, basis).reshape(x.shape)


def matrix_normalize(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """``X / (||X||^2 + 1)`` of every row and channel."""
    components = x.view(len(x), 9, x.shape[1] // 9)
    return (components / (components.square().sum(1, keepdim=True) + 1)).reshape(x.shape)
