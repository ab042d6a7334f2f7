"""Operations on 3x3 matrices in compact storage. Definitions: reference.py.

A matrix is stored as nine numbers, its parts of degree 0 (a multiple of the unit matrix), 1
(antisymmetric) and 2 (symmetric, traceless): "mul x 0e + mul x 1o + mul x 2e" in layout "ir_mul",
as `eqtp.so3.convert` makes it, an inversion transposing the matrix. Simeon and De Fabritiis,
"TensorNet", arXiv 2306.06482, section 3.
"""

from __future__ import annotations

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.backend import Backend, resolve
from eqtp.compiling import constant_when_compiled
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.matrix import _ops, reference
from eqtp.kernels.matrix.reference import Kind
from eqtp.operators import is_autocast, widest

__all__ = ["IMPLEMENTED", "Kind", "matrix_normalize", "matrix_product"]

IMPLEMENTED = ("cpu", "torch", "reference")


def matrix_product(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "rows dim"],
    kind: Kind = "product",
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "rows dim"]:
    """``X Y``, ``X Y - Y X`` or ``X Y + Y X`` of 3x3 matrices, one per row and channel.

    Transposition, which is what an inversion does to them, reverses products: only the
    anticommutator is O(3)-equivariant, and the product of a matrix with itself.

    Args:
        x: Left factors, nine blocks of channels.
        y: Right factors, same shape.
        kind: "product", "commutator" or "anticommutator".
        backend: See `eqtp.backend`.

    Raises:
        ValueError: Shapes or the kind do not fit.
        TypeError: The dtypes or devices differ.

    Example:
        >>> x = torch.zeros(1, 9)
        >>> x[0, 0] = 3**0.5  # the unit matrix
        >>> matrix_product(x, x, "anticommutator")[0, 0].square().round().item()
        12.0
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    if is_autocast(x):
        x, y = widest((x, y))
    _validate(x)
    if x.shape != y.shape:
        raise ValueError(f"y must have the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
    if (x.dtype, x.device) != (y.dtype, y.device):
        raise TypeError(
            f"x and y must share dtype and device, got {x.dtype} on {x.device} and {y.dtype} on "
            f"{y.device}"
        )
    chosen = _choose(backend, x.dtype, x.device.type)
    if chosen == "reference":
        return reference.matrix_product(x, y, kind)
    return _ops.product(x, y, kind, False, False, chosen)


def matrix_normalize(
    x: Float[Tensor, "rows dim"], *, backend: Backend = "auto"
) -> Float[Tensor, "rows dim"]:
    """``X / (||X||^2 + 1)`` of 3x3 matrices, one per row and channel; Frobenius norm.

    Args:
        x: Matrices, nine blocks of channels.
        backend: See `eqtp.backend`.

    Raises:
        ValueError: x is not rows of nine blocks.

    Example:
        >>> matrix_normalize(torch.full((1, 9), 2.0))[0, 0].mul(37).round().item()
        2.0
    """
    _validate(x)
    chosen = _choose(backend, x.dtype, x.device.type)
    if chosen == "reference":
        return reference.matrix_normalize(x)
    return _ops.normalize(x, chosen)


def _validate(x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] % 9 != 0:
        raise ValueError(f"x must be rows of nine blocks of channels, got shape {tuple(x.shape)}")


@constant_when_compiled
def _choose(backend: Backend, dtype: torch.dtype, device: str) -> str:
    def why_not(name: str) -> str | None:
        if name in ("cpu", "triton") and dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 or float64, got {dtype}"
        return why_unavailable(name)

    return resolve(
        backend, family="matrix", implemented=IMPLEMENTED, device=device, why_not=why_not
    ).backend
