"""The two memory orders of equivariant features, and the one place that converts them.

    mul_ir   block of irreps "mul x l" stored as [mul, 2l+1]; e3nn's order, public default
    ir_mul   the same block stored as [2l+1, mul]; channels fastest, the order of the kernels

Blocks follow one another as in the irreps; only the order inside a block differs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.compiling import constant_when_compiled
from eqtp.irreps import Irreps

__all__ = ["Layout", "check_layout", "to_layout"]

Layout = Literal["mul_ir", "ir_mul"]


def check_layout(layout: str, name: str = "layout") -> None:
    """Refuses anything that is not a layout's name.

    Raises:
        ValueError: `layout` is neither "mul_ir" nor "ir_mul".
    """
    if layout not in get_args(Layout):
        raise ValueError(f"{name} must be one of {get_args(Layout)}, got {layout!r}")


def to_layout(
    x: Float[Tensor, "*batch dim"], irreps: Irreps | str, src: Layout, dst: Layout
) -> Float[Tensor, "*batch dim"]:
    """Features in another memory order.

    Args:
        x: Features, blocks in the order of `irreps`.
        irreps: Irreps of x.
        src: Layout of x.
        dst: Layout of the result.

    Returns:
        The same features in layout `dst`; x itself where both layouts agree, which they also do
        when every block is of scalars or of multiplicity one.

    Raises:
        ValueError: A layout is unknown or x has not `irreps.dim` columns.

    Example:
        >>> to_layout(torch.arange(6.0), Irreps("2x1o"), "mul_ir", "ir_mul").tolist()
        [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    check_layout(src, "src")
    check_layout(dst, "dst")
    dim, spans = _columns(irreps)
    if x.shape[-1:] != (dim,):
        raise ValueError(
            f"x must have {dim} columns (irreps='{irreps}'), got shape {tuple(x.shape)}"
        )
    if src == dst or all(mul == 1 for _, mul, _ in spans):
        return x
    # One split, not a slice per block: the gradient of a slice is as large as x.
    pieces = list(x.split([length for length, _, _ in spans], dim=-1))
    for index, (length, mul, dim) in enumerate(spans):
        if mul > 1:
            shape = (*x.shape[:-1], mul, dim) if src == "mul_ir" else (*x.shape[:-1], dim, mul)
            block = pieces[index].reshape(shape).transpose(-1, -2)
            pieces[index] = block.reshape(*x.shape[:-1], length)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


@constant_when_compiled
def _columns(irreps: Irreps | str) -> tuple[int, tuple[tuple[int, int, int], ...]]:
    """The number of columns, and the columns as `_spans`."""
    return _spans(irreps)


@lru_cache(maxsize=1024)
def _spans(irreps: Irreps | str) -> tuple[int, tuple[tuple[int, int, int], ...]]:
    """Columns as (length, mul, dim), neighbours that need no transpose joined (mul 1)."""
    irreps = Irreps(irreps)
    spans: list[tuple[int, int, int]] = []
    for mul, ir in irreps:
        dim = ir.dim
        length = mul * dim
        if length == 0:
            continue
        if mul > 1 and dim > 1:
            spans.append((length, mul, dim))
        elif spans and spans[-1][1] == 1:
            spans[-1] = (spans[-1][0] + length, 1, 1)
        else:
            spans.append((length, 1, 1))
    return irreps.dim, tuple(spans)
