"""Fast plain-torch path: recursion by matrix products, gradients in closed form.

Inside, features are rows and vectors are columns ([3, N], [(lmax+1)^2, N]), so that every
elementwise step runs along N. For N = 2246, lmax = 3, float32 on one CPU thread the forward pass
took 131 us of CPU time in this layout and 301 us with vectors as rows.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eqtp.so3.solid_harmonics import Normalization, gradient_form, pole_value, recursion_step


class _Constants(NamedTuple):
    """What the recursion and its gradient multiply with, in the dtype and on the device of use."""

    lmax: int
    constant: float  # Y_0
    steps: tuple[Tensor, ...]  # per degree l >= 1: [2l+1, (2l-1) * 3]
    form_on_low: Tensor  # gradient_form as [3, high, low], low = lmax^2, high = (lmax+1)^2 - 1
    form_on_high: Tensor  # the same as [3, low, high]


@functools.cache
def _constants(
    lmax: int, normalization: Normalization, dtype: torch.dtype, device: torch.device
) -> _Constants:
    steps = [recursion_step(l, normalization) for l in range(1, lmax + 1)]
    form = gradient_form(lmax, normalization)
    return _Constants(
        lmax,
        pole_value(0, normalization),
        tuple(s.flatten(0, 1).t().contiguous().to(device, dtype) for s in steps),
        form.permute(1, 2, 0).contiguous().to(device, dtype),
        form.permute(1, 0, 2).contiguous().to(device, dtype),
    )


def spherical_harmonics(
    lmax: int, vec: Tensor, normalization: Normalization, normalize: bool
) -> Tensor:
    """Computes `eqtp.so3.spherical_harmonics` of vectors [N, 3] as contiguous rows."""
    columns = vec.t().contiguous()
    if normalize:
        columns, _ = _UnitVectors.apply(columns)  # type: ignore[no-untyped-call]
    constants = _constants(lmax, normalization, vec.dtype, vec.device)
    harmonics: Tensor = _SolidHarmonics.apply(columns, constants)  # type: ignore[no-untyped-call]
    return harmonics.t().contiguous()


class _UnitVectors(torch.autograd.Function):
    """(u, 1/r) = (v / |v|, 1 / |v|), both 0 for a vector whose square underflows.

    The gradient is written in the two results alone, ``(g_u - u (u . g_u)) / r - g_w u / r^2``
    with ``w = 1/r``, so that the zero vector, where both are 0, has zero derivatives of every
    order, and nothing is divided by r in the backward passes.
    """

    @staticmethod
    def forward(ctx: Any, vec: Tensor) -> tuple[Tensor, Tensor]:
        squared = (vec * vec).sum(0, keepdim=True)
        vanishing = squared < torch.finfo(vec.dtype).tiny
        inverse = torch.rsqrt(squared).masked_fill_(vanishing, 0.0)
        unit = vec * inverse
        ctx.save_for_backward(unit, inverse)
        ctx.set_materialize_grads(False)
        return unit, inverse

    @staticmethod
    def backward(ctx: Any, grad_unit: Tensor | None, grad_inverse: Tensor | None) -> Any:
        unit, inverse = ctx.saved_tensors
        grad = None
        if grad_unit is not None:
            grad = inverse * (grad_unit - unit * (unit * grad_unit).sum(0, keepdim=True))
        if grad_inverse is not None:
            radial = -grad_inverse * inverse.square() * unit
            grad = radial if grad is None else grad + radial
        return grad


class _SolidHarmonics(torch.autograd.Function):
    """Y(v) [(lmax+1)^2, N] of v [3, N], degree after degree; the gradient needs only Y itself."""

    @staticmethod
    def forward(ctx: Any, vec: Tensor, constants: _Constants) -> Tensor:
        n = vec.shape[1]
        degrees = [vec.new_full((1, n), constants.constant)]
        for step in constants.steps:
            outer = degrees[-1][:, None] * vec
            degrees.append(_matmul(step, outer.view(step.shape[1], n)))
        harmonics = torch.cat(degrees)
        ctx.constants = constants
        ctx.save_for_backward(harmonics)
        return harmonics

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (harmonics,) = ctx.saved_tensors
        low = harmonics[: ctx.constants.lmax**2]
        high = grad[1:].contiguous()
        return _GradientForm.apply(ctx.constants, low, None, high), None  # type: ignore[no-untyped-call]


class _GradientForm(torch.autograd.Function):
    """The trilinear form ``sum form[k, a, m] low[k] vec[a] high[m]``, contracted with two of three.

    None stands in the place of the operand that is left open, and the result belongs there. The
    gradients are the same form left open elsewhere, so it is differentiable to any order.
    """

    @staticmethod
    def forward(ctx: Any, constants: _Constants, low: Any, vec: Any, high: Any) -> Tensor:
        ctx.constants = constants
        ctx.save_for_backward(low, vec, high)
        result: Tensor
        if low is None:
            result = (_apply_form(constants.form_on_high, high) * vec[:, None]).sum(0)
        elif vec is None:
            result = (_apply_form(constants.form_on_low, low) * high).sum(1)
        else:
            result = (_apply_form(constants.form_on_low, low) * vec[:, None]).sum(0)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        operands = [grad if operand is None else operand for operand in ctx.saved_tensors]
        grads: list[Tensor | None] = [None] * 4
        for slot in range(3):
            if ctx.needs_input_grad[1 + slot]:
                opened = [*operands[:slot], None, *operands[slot + 1 :]]
                grads[1 + slot] = _GradientForm.apply(ctx.constants, *opened)  # type: ignore[no-untyped-call]
        return tuple(grads)


def _apply_form(form: Tensor, features: Tensor) -> Tensor:
    """Contracts ``form`` [3, out, in] with ``features`` [in, N] to [3, out, N]."""
    product = _matmul(form.flatten(0, 1), features)
    return product.view(3, form.shape[1], features.shape[1])


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiplies in the operands' dtype: autocast leaves products with `out=` alone."""
    return torch.mm(a, b, out=b.new_empty(a.shape[0], b.shape[1]))
