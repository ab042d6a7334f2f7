"""Features as spherical components, as square matrices, and as Cartesian tensors."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.irreps import Irreps
from eqtp.layout import Layout, to_layout
from eqtp.so3.tensor_bases import matrix_basis, traceless_basis

__all__ = ["Form", "convert"]

Form = Literal["sph", "mat", "cart"]

MAX_RANK = 4
"""Highest degree as a Cartesian tensor: beyond, 3^l numbers stand for 2l+1, and paths cost more."""


def convert(
    x: Float[Tensor, "*shape"],
    irreps: Irreps | str,
    src: Form = "sph",
    dst: Form = "mat",
    *,
    layout: Layout = "mul_ir",
) -> Float[Tensor, "*shape_out"]:
    """The same features in another form. Isometric: sums of squares stay what they are.

        "sph"    spherical components [..., irreps.dim]
        "mat"    (2j+1) x (2j+1) matrices [..., mul, 2j+1, 2j+1], X = sum_lm x[l m] B[l m] with the
                 matrices of `eqtp.so3.matrix_basis`; irreps must be the degrees 0 ... 2j in this
                 order, of one multiplicity: "8x0e+8x1o+8x2e" are TensorNet's 3x3 matrices
        "cart"   symmetric traceless tensors [..., mul, 3, ..., 3] with l indices x, y, z,
                 T = sum_m x[m] Q[m] with the tensors of `traceless_basis`; irreps must be one block
                 "mul x l" of l <= 4

    The irreps say what an inversion does. Of matrices, with s = 1 or -1: X -> s X where all
    parities are s ("0e+1e+2e", a tensor proper), and X -> s X^T where they are s (-1)^l
    ("0e+1o+2e", TensorNet's, whose antisymmetric part is a polar vector). Other combinations are
    refused, because no matrix transforms that way.

    Args:
        x: Features in the form `src`.
        irreps: What they are.
        src: Form of x.
        dst: Form of the result.
        layout: Memory order of spherical components.

    Raises:
        ValueError: A form is unknown, irreps have no such form, or the shape of x does not fit.

    Example:
        >>> x = torch.randn(5, 2 * 9)
        >>> matrices = convert(x, "2x0e+2x1o+2x2e", "sph", "mat")
        >>> matrices.shape, torch.allclose(convert(matrices, "2x0e+2x1o+2x2e", "mat", "sph"), x)
        (torch.Size([5, 2, 3, 3]), True)
        >>> convert(torch.tensor([1.0, 2.0, 3.0]), "1o", "sph", "cart").tolist()
        [[1.0, 2.0, 3.0]]
    """
    parsed = Irreps(irreps)
    for name, form in (("src", src), ("dst", dst)):
        if form not in get_args(Form):
            raise ValueError(f"{name} must be one of {get_args(Form)}, got {form!r}")
    spherical = x if src == "sph" else _fold(x, parsed, src, layout)
    if spherical.shape[-1:] != (parsed.dim,):
        raise ValueError(f"x must have {parsed.dim} columns ({parsed}), got {tuple(x.shape)}")
    return spherical if dst == "sph" else _unfold(spherical, parsed, dst, layout)


def _unfold(x: Tensor, irreps: Irreps, form: Form, layout: Layout) -> Tensor:
    basis = _basis(irreps, form).to(x)
    components = _by_channel(to_layout(x, irreps, layout, "mul_ir"), irreps)
    flat = components @ basis.reshape(len(basis), -1)
    return flat.reshape(*components.shape[:-1], *basis.shape[1:])


def _fold(x: Tensor, irreps: Irreps, form: Form, layout: Layout) -> Tensor:
    basis = _basis(irreps, form)
    mul, shape = irreps[0].mul, tuple(basis.shape[1:])
    if x.ndim <= len(shape) or x.shape[x.ndim - len(shape) - 1 :] != (mul, *shape):
        wanted = ", ".join(map(str, ("...", mul, *shape)))
        raise ValueError(
            f"x in the form {form!r} must have shape ({wanted}) for irreps '{irreps}', "
            f"got {tuple(x.shape)}"
        )
    rows = x.shape[: x.ndim - len(shape) - 1]
    components = x.reshape(*rows, mul, math.prod(shape)) @ basis.to(x).reshape(len(basis), -1).t()
    blocks = components.split([ir.dim for _, ir in irreps], dim=-1)
    flat = torch.cat([block.flatten(-2) for block in blocks], dim=-1)
    return to_layout(flat, irreps, "mul_ir", layout)


def _by_channel(x: Tensor, irreps: Irreps) -> Tensor:
    """Blocks [mul, 2l+1] side by side, [..., mul, components]."""
    blocks = x.split([mul * ir.dim for mul, ir in irreps], dim=-1)
    shaped = [
        block.reshape(*x.shape[:-1], mul, ir.dim)
        for block, (mul, ir) in zip(blocks, irreps, strict=True)
    ]
    return torch.cat(shaped, dim=-1)


def _basis(irreps: Irreps, form: Form) -> Tensor:
    """The matrices or tensors that the components of one channel stand for."""
    return _matrix_basis(irreps) if form == "mat" else _cartesian_basis(irreps)


def _matrix_basis(irreps: Irreps) -> Tensor:
    degrees = [ir.l for _, ir in irreps]
    complete = len(degrees) % 2 == 1 and degrees == list(range(len(degrees)))
    if not complete or len({mul for mul, _ in irreps}) != 1:
        raise ValueError(
            "matrices are the degrees 0 ... 2j in this order with one multiplicity, e.g. "
            f"'8x0e+8x1o+8x2e', got '{irreps}'"
        )
    parities = [ir.p for _, ir in irreps]
    natural = [ir.p * (-1) ** ir.l for _, ir in irreps]
    if len(set(parities)) != 1 and len(set(natural)) != 1:
        raise ValueError(
            "an inversion multiplies a matrix by 1 or -1 (all parities equal) or transposes it, "
            f"too (parities alternating), which '{irreps}' does not; e.g. '0e+1e+2e' or '0e+1o+2e'"
        )
    return matrix_basis(len(degrees) // 2)


def _cartesian_basis(irreps: Irreps) -> Tensor:
    if len(irreps) != 1 or irreps[0].ir.l > MAX_RANK:
        raise ValueError(
            f"Cartesian tensors are one block 'mul x l' of l <= {MAX_RANK}, got '{irreps}': "
            "convert block by block"
        )
    return traceless_basis(irreps[0].ir.l)
