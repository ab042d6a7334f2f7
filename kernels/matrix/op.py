"""Operations on matrices in compact storage. Definitions: reference.py.

A 3x3 matrix is stored as nine numbers, its parts of degree 0 (a multiple of the unit matrix), 1
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
from eqtp.operands import check_alike
from eqtp.operators import is_autocast, widest

__all__ = ["IMPLEMENTED", "Kind", "matrix_normalize", "matrix_product", "why_not"]

IMPLEMENTED = ("triton", "cpu", "torch", "reference")


def matrix_product(
    x: Float[Tensor, "rows dim"],
    y: Float[Tensor, "rows dim"],
    kind: Kind = "product",
    *,
    j: int = 1,
    backend: Backend = "auto",
) -> Float[Tensor, "rows dim"]:
    """``X Y``, ``X Y - Y X`` or ``X Y + Y X`` of matrices, one per row and channel.

    Transposition, which is what an inversion does to them, reverses products: only the
    anticommutator is O(3)-equivariant, and the product of a matrix with itself.

    Args:
        x: Left factors, (2j+1)^2 blocks of channels.
        y: Right factors, same shape.
        kind: "product", "commutator" or "anticommutator".
        j: The matrices are (2j+1) x (2j+1).
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
    _validate(x, j)
    if x.shape != y.shape:
        raise ValueError(f"y must have the shape of x, {tuple(x.shape)}, got {tuple(y.shape)}")
    check_alike(x=x, y=y)
    chosen = _choose(backend, x.dtype, x.device.type, j)
    if chosen == "reference":
        return reference.matrix_product(x, y, kind, j=j)
    return _ops.product(x, y, kind, False, False, j, chosen)


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
    _validate(x, 1)
    chosen = _choose(backend, x.dtype, x.device.type, 1)
    if chosen == "reference":
        return reference.matrix_normalize(x)
    return _ops.normalize(x, chosen)


def _validate(x: Tensor, j: int) -> None:
    blocks = (2 * j + 1) ** 2
    if x.ndim != 2 or x.shape[1] % blocks != 0:
        raise ValueError(
            f"x must be rows of {blocks} blocks of channels (j={j}), got shape {tuple(x.shape)}"
        )


@constant_when_compiled
def _choose(backend: Backend, dtype: torch.dtype, device: str, j: int) -> str:
    chosen = resolve(
        backend,
        family="matrix",
        implemented=IMPLEMENTED,
        device=device,
        why_not=lambda name: why_not(name, dtype, j),
    )
    return chosen.backend


def why_not(backend: str, dtype: torch.dtype, j: int) -> str | None:
    """Why a backend cannot multiply; None where it can."""
    if backend in ("cpu", "triton"):
        if dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 or float64, got {dtype}"
        if j != 1:
            return f"it has products of 3x3 matrices, got {2 * j + 1}x{2 * j + 1}"
    return why_unavailable(backend)
