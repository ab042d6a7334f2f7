"""Products of 3x3 matrices in compact storage, differentiable to any order."""

from __future__ import annotations

from typing import get_args

from jaxtyping import Float
from torch import Tensor

from eqtp.backend import Backend
from eqtp.kernels.matrix import _torch
from eqtp.kernels.matrix.reference import Kind

__all__ = ["Kind", "matrix_product"]


def matrix_product(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "rows dim"],
    kind: Kind = "product",
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "rows dim"]:
    """``X Y``, ``X Y - Y X`` or ``X Y + Y X`` of 3x3 matrices, one per row and channel.

    A matrix is stored as nine numbers, its parts of degree 0 (a multiple of the unit matrix), 1
    (antisymmetric) and 2 (symmetric, traceless): "mul x 0e + mul x 1o + mul x 2e" in layout
    "ir_mul", as `eqtp.so3.convert` makes it, an inversion transposing the matrix. Transposition
    reverses products: only the anticommutator respects it, the others are for SO(3).

    Args:
        x: Left factors, nine blocks of channels.
        y: Right factors, same shape.
        kind: "product", "commutator" or "anticommutator".
        backend: See `eqtp.backend`.

    Raises:
        ValueError: Shapes or the kind do not fit.

    Example:
        >>> x = torch.zeros(1, 9)
        >>> x[0, 0] = 3**0.5  # the unit matrix
        >>> matrix_product(x, x, "anticommutator")[0, 0].pow(2).round().item()
        12.0
    """
    _validate(x, y, kind)
    del backend
    return _torch.matrix_product(x, y, kind)


def _validate(x: Tensor, y: Tensor, kind: str) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    if x.ndim != 2 or x.shape[1] % 9 != 0:
        raise ValueError(f"x must be rows of nine blocks of channels, got shape {tuple(x.shape)}")
    if x.shape != y.shape:
        raise ValueError(f"y must have the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
    if x.dtype != y.dtype or x.device != y.device:
        raise ValueError(
            f"x and y must share dtype and device, got {x.dtype} on {x.device} and {y.dtype} on "
            f"{y.device}"
        )
