"""Products of 3x3 matrices in plain torch: three updates of rank one, any device."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.kernels.matrix.reference import Kind
from eqtp.so3.matrix_basis import matrix_basis

__all__ = ["matrix_product"]


def matrix_product(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "rows dim"],
    kind: Kind,
    transpose_x: bool = False,
    transpose_y: bool = False,
) -> Float[Tensor, "rows dim"]:
    """As `reference.matrix_product`."""
    basis = matrix_basis(1).to(x).flatten(1)
    left, right = _matrices(x, basis, transpose_x), _matrices(y, basis, transpose_y)
    out = _product(left, right)
    if kind == "anticommutator":
        out = out + _product(right, left)
    elif kind == "commutator":
        out = out - _product(right, left)
    return (basis @ out.view(len(x), 9, -1)).view(x.shape)


def _matrices(x: Tensor, basis: Tensor, transpose: bool) -> Tensor:
    matrices = (basis.t() @ x.view(len(x), 9, -1)).view(len(x), 3, 3, x.shape[1] // 9)
    return matrices.transpose(1, 2) if transpose else matrices


def _product(left: Tensor, right: Tensor) -> Tensor:
    terms = [left[:, :, k, None] * right[:, None, k] for k in range(3)]
    return torch.stack(terms).sum(0)
