"""The equivariant norm, layer norm included. Definition: reference.py.

In plain torch it is sixty passes over the features once training on forces has differentiated it
twice; here each derivative is one.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.autograd import as_own_nodes, wanted_gradients
from eqtp.kernels.codegen.availability import cpu_serves
from eqtp.kernels.equivariant_norm import _cpu, reference

__all__ = ["equivariant_norm"]


def equivariant_norm(
    x: Float[Tensor, "rows components channels"],
    gain: Float[Tensor, "degrees channels"],
    bias: Float[Tensor, " channels"],
    *,
    eps: float = 1e-5,
    activation: bool = False,
) -> Float[Tensor, "rows components channels"]:
    """Features over their root mean square, in which every degree counts the same.

        x_0 <- x_0 - mean_c(x_0)
        rms^2 = mean_l mean_m mean_c x_lmc^2
        out_lmc = gain_lc x_lmc / sqrt(rms^2 + eps) + bias_c [l = 0]

    With scalars alone it is layer norm. Twice differentiable in one pass each, and to any order by
    the definition. Source: eSCN-MD's `rms_norm_sh` (arXiv 2502.12147).

    Args:
        x: Features with (lmax + 1)^2 components.
        gain: Factor of each degree, lmax + 1 of them, and channel.
        bias: Added to the scalars.
        eps: Added to the mean square.
        activation: Whether the scalars are followed by SiLU.

    Raises:
        ValueError: Shapes disagree.

    Example:
        >>> x, gain, bias = torch.randn(5, 4, 8), torch.ones(2, 8), torch.zeros(8)
        >>> equivariant_norm(x, gain, bias).square().mean((0, 2)).sum() < 8
        tensor(True)
    """
    shape = (len(x), len(gain) ** 2, len(bias))
    if x.shape != shape or gain.shape[1:] != bias.shape:
        raise ValueError(
            "x must be [rows, (lmax + 1)^2, channels], gain [lmax + 1, channels] and bias "
            f"[channels], got {tuple(x.shape)}, {tuple(gain.shape)} and {tuple(bias.shape)}"
        )
    if not cpu_serves(x, gain, bias):
        return reference.equivariant_norm(x, gain, bias, eps, activation)
    out: Tensor = _Norm.apply(x, gain, bias, eps, activation)  # type: ignore[no-untyped-call]
    return out


class _Norm(torch.autograd.Function):
    """out(x, gain, bias)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float, activation: bool
    ) -> Tensor:
        x, gain, bias = x.contiguous(), gain.contiguous(), bias.contiguous()
        ctx.options = eps, activation
        ctx.save_for_backward(x, gain, bias)
        return _cpu.forward(x, gain, bias, eps, activation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gain, bias = ctx.saved_tensors
        eps, activation = ctx.options
        _, *to_weights = wanted_gradients(ctx, (x, gain, bias))
        if any(to_weights) and torch.is_grad_enabled():
            nodes = as_own_nodes(x, gain, bias)
            out = reference.equivariant_norm(nodes[0], nodes[1], nodes[2], eps, activation)
            return *torch.autograd.grad(out, nodes, grad, create_graph=True), None, None
        to_x = _Gradient.apply(x, gain, bias, grad, eps, activation)  # type: ignore[no-untyped-call]
        if not any(to_weights):
            return to_x, None, None, None, None
        grad = grad.contiguous()
        to_gain, to_bias = _cpu.weight_gradient(x, gain, bias, grad, eps, activation)
        return to_x, to_gain, to_bias, None, None


class _Gradient(torch.autograd.Function):
    """Gradient of <grad, out(x, gain, bias)> in x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        bias: Tensor,
        grad: Tensor,
        eps: float,
        activation: bool,
    ) -> Tensor:
        grad = grad.contiguous()
        ctx.options = eps, activation
        ctx.save_for_backward(x, gain, bias, grad)
        return _cpu.gradient(x, gain, bias, grad, eps, activation)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        x, gain, bias, grad = ctx.saved_tensors
        eps, activation = ctx.options
        if not torch.is_grad_enabled():
            found = _cpu.second(x, gain, bias, grad, v.contiguous(), eps, activation)
            return *found, None, None
        wanted = wanted_gradients(ctx, (x, gain, bias, grad))
        nodes = as_own_nodes(x, gain, bias, grad)
        out = reference.equivariant_norm(nodes[0], nodes[1], nodes[2], eps, activation)
        (to_x,) = torch.autograd.grad(out, nodes[0], nodes[3], create_graph=True)
        grads = torch.autograd.grad(to_x, nodes, v, create_graph=True, materialize_grads=True)
        return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None
