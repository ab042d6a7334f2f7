"""Operations on matrices in plain torch, any device."""

from __future__ import annotations

import math

from torch import Tensor

from eqtp.kernels.matrix.reference import Kind
from eqtp.so3.tensor_bases import matrix_basis

__all__ = ["gradient", "normalize", "product", "second_gradient"]


def product(
    x: Tensor, y: Tensor, kind: Kind, transpose_x: bool, transpose_y: bool, j: int
) -> Tensor:
    """As `reference.matrix_product`: a sum of outer products of columns and rows."""
    basis = matrix_basis(j).to(x).flatten(1)
    left, right = _matrices(x, basis, transpose_x), _matrices(y, basis, transpose_y)
    out = _multiply(left, right)
    if kind == "anticommutator":
        out = out + _multiply(right, left)
    elif kind == "commutator":
        out = out - _multiply(right, left)
    return (basis @ out.flatten(1, 2)).view(x.shape)


def _matrices(x: Tensor, basis: Tensor, transpose: bool) -> Tensor:
    size, channels = len(basis), x.shape[1] // len(basis)
    side = math.isqrt(size)
    matrices = (basis.t() @ x.view(len(x), size, channels)).view(len(x), side, side, channels)
    return matrices.transpose(1, 2) if transpose else matrices


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    out = left[:, :, 0, None] * right[:, None, 0]
    for k in range(1, left.shape[1]):
        out = out + left[:, :, k, None] * right[:, None, k]
    return out


def normalize(x: Tensor) -> Tensor:
    """``s x`` with ``s = 1 / (x.x + 1)`` per row and channel, as `reference.matrix_normalize`."""
    rows = _components(x)
    return (rows * _factor(rows)).view(x.shape)


def gradient(x: Tensor, g: Tensor) -> Tensor:
    """Gradient of <g, normalize(x)>: ``s g - 2 s^2 (g.x) x``, symmetric in its use of g."""
    rows, g = _components(x), _components(g)
    s = _factor(rows)
    out = s * g - 2 * s.square() * _dot(g, rows) * rows
    return out.view(x.shape)


def second_gradient(x: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """Gradient of <v, gradient(x, g)> in x: ``(8 s^3 a b - 2 s^2 c) x - 2 s^2 (a v + b g)``.

    a = g.x, b = v.x, c = g.v.
    """
    rows, g, v = _components(x), _components(g), _components(v)
    s = _factor(rows)
    a, b, c = _dot(g, rows), _dot(v, rows), _dot(g, v)
    square = 2 * s.square()
    out = (4 * square * s * a * b - square * c) * rows - square * (a * v + b * g)
    return out.view(x.shape)


def _components(x: Tensor) -> Tensor:
    return x.view(len(x), 9, x.shape[1] // 9)


def _factor(rows: Tensor) -> Tensor:
    return 1 / (_dot(rows, rows) + 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)
