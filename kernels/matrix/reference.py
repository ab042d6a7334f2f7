"""The definition of products of 3x3 matrices in compact storage."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.so3.matrix_basis import matrix_basis

__all__ = ["Kind", "matrix_product"]

Kind = Literal["product", "commutator", "anticommutator"]


def matrix_product(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "rows dim"],
    kind: Kind,
    transpose_x: bool = False,
    transpose_y: bool = False,
) -> Float[Tensor, "rows dim"]:
    """``X Y``, ``X Y - Y X`` or ``X Y + Y X`` of every row and channel.

    X[a, b] = sum_m x[m] B[m, a, b] with the nine matrices B of `eqtp.so3.matrix_basis(1)`: x is
    stored as [9, channels], degree 0, then 1, then 2.
    """
    basis = matrix_basis(1).to(x)
    left = torch.einsum("nmc,mab->nabc", x.view(len(x), 9, -1), basis)
    right = torch.einsum("nmc,mab->nabc", y.view(len(y), 9, -1), basis)
    left = left.transpose(1, 2) if transpose_x else left
    right = right.transpose(1, 2) if transpose_y else right
    out = torch.einsum("nabc,nbdc->nadc", left, right)
    if kind != "product":
        reverse = torch.einsum("nabc,nbdc->nadc", right, left)
        out = out + reverse if kind == "anticommutator" else out - reverse
    return torch.einsum("nadc,mad->nmc", out, basis).reshape(x.shape)
