"""The public function: real spherical harmonics of a batch of vectors."""

from __future__ import annotations

from types import ModuleType
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.autograd import as_own_nodes, wanted_gradients
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.spherical_harmonics import _cpu, _torch, _triton
from eqtp.so3.solid_harmonics import Normalization


def spherical_harmonics(
    lmax: int,
    vec: Float[Tensor, "*batch 3"],
    normalization: Normalization = "component",
    normalize: bool = True,
) -> Float[Tensor, "*batch {(lmax+1)**2}"]:
    """Computes the real spherical harmonics of degrees 0 to ``lmax``.

    Order m of degree l stands in column ``l^2 + l + m``; axes and signs are e3nn's (degree 1 is
    x, y, z; y is the polar axis). The functions are polynomials of x, y, z, evaluated without
    angles: value and derivatives of every order are as accurate at the poles as elsewhere.

    With ``normalize`` they are those of ``vec / |vec|``. The zero vector (``|vec|^2`` below the
    smallest normal number of the dtype) has no direction: its degree 0 is the constant, its other
    degrees are 0, and all its derivatives are 0. Without ``normalize`` they are the solid
    harmonics, homogeneous of degree l, and nothing is special about the zero vector.

    Differentiable to any order, in the dtype of ``vec``, also under autocast. Matrix products are
    used, so float32 on a GPU honours `torch.set_float32_matmul_precision`: leave it at "highest"
    for full accuracy.

    Args:
        lmax: highest degree, >= 0.
        vec: vectors; float16 and bfloat16 are computed in float32 and rounded once.
        normalization: "component" (each component has mean square 1 on the sphere: the squares
            of a degree sum to 2l+1), "norm" (to 1), or "integral" (to (2l+1) / 4 pi: orthonormal).
        normalize: whether to use the directions only.

    Returns:
        The harmonics, contiguous.

    Raises:
        ValueError: ``lmax`` is negative, ``vec`` is not [..., 3], or the normalisation is unknown.
        TypeError: ``vec`` is not a floating-point tensor.

    Example:
        >>> spherical_harmonics(1, torch.tensor([0.0, 2.0, 0.0]), normalization="norm")
        tensor([1., 0., 1., 0.])
    """
    check_options(lmax, normalization)
    if vec.shape[-1:] != (3,):
        raise ValueError(f"vec must have 3 columns (x, y, z), got shape {tuple(vec.shape)}")
    if vec.dtype in (torch.float16, torch.bfloat16):  # types of storage
        return spherical_harmonics(lmax, vec.float(), normalization, normalize).to(vec.dtype)
    if vec.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"vec must be a floating-point tensor, got {vec.dtype}; convert it, e.g. with "
            "vec.float()"
        )
    rows = vec.reshape(-1, 3)
    harmonics: Tensor
    kernels = _compiled_kernels(lmax, vec)
    if kernels is not None:
        harmonics = _Harmonics.apply(rows.contiguous(), kernels, lmax, normalization, normalize)  # type: ignore[no-untyped-call]
    else:
        harmonics = _torch.spherical_harmonics(lmax, rows, normalization, normalize)
    return harmonics.view(*vec.shape[:-1], (lmax + 1) ** 2)


def check_options(lmax: int, normalization: str) -> None:
    """Raises ValueError unless ``lmax`` is a degree and ``normalization`` a known name."""
    if lmax < 0:
        raise ValueError(f"lmax must be >= 0, got {lmax}")
    if normalization not in get_args(Normalization):
        raise ValueError(
            f"normalization must be one of {', '.join(get_args(Normalization))}, "
            f"got {normalization!r}"
        )


def _compiled_kernels(lmax: int, vec: Tensor) -> ModuleType | None:
    """The compiled kernels that serve a call; None where plain torch does."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if vec.device.type == "cpu" and why_unavailable("cpu") is None:
        return _cpu
    if (
        vec.device.type == "cuda"
        and lmax <= _triton.MAX_DEGREE
        and why_unavailable("triton") is None
    ):
        return _triton
    return None


class _Harmonics(torch.autograd.Function):
    """The harmonics of rows by compiled kernels."""

    @staticmethod
    def forward(ctx: Any, vec: Tensor, kernels: ModuleType, *options: Any) -> Tensor:
        ctx.kernels, ctx.options = kernels, options
        ctx.save_for_backward(vec)
        lmax, *rest = options
        values: Tensor = kernels.forward(lmax, vec, *rest)
        return values

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (vec,) = ctx.saved_tensors
        grad = _Gradient.apply(vec, g.contiguous(), ctx.kernels, *ctx.options)  # type: ignore[no-untyped-call]
        return grad, None, None, None, None


class _Gradient(torch.autograd.Function):
    """Gradient of <g, harmonics> in the vectors.

    What a loss on forces asks of it is a derivative along a direction; the gradient in the vectors
    once more, and all that is differentiated further, is plain torch's.
    """

    @staticmethod
    def forward(ctx: Any, vec: Tensor, g: Tensor, kernels: ModuleType, *options: Any) -> Tensor:
        ctx.kernels, ctx.options = kernels, options
        ctx.save_for_backward(vec, g)
        lmax, *rest = options
        grad: Tensor = kernels.gradient(lmax, vec, g, *rest)
        return grad

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> Any:
        vec, g = ctx.saved_tensors
        to_vec, to_g = wanted_gradients(ctx, (vec, g))
        lmax, *rest = ctx.options
        if not to_vec and not torch.is_grad_enabled():
            along = None
            if to_g:
                along = ctx.kernels.directional(lmax, vec, direction.contiguous(), *rest)
            return None, along, None, None, None, None
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            operands = as_own_nodes(vec, g)
            harmonics = _torch.spherical_harmonics(lmax, operands[0], *rest)
            (gradient,) = torch.autograd.grad(
                harmonics, operands[:1], operands[1], create_graph=True
            )
        found = torch.autograd.grad(
            gradient, operands, direction, create_graph=create_graph, materialize_grads=True
        )
        return (*found, None, None, None, None)
