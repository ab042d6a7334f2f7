"""Hidden features of a radial network at the lengths of the edges, to any order of derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.autograd import as_own_nodes, wanted_gradients
from eqtp.backend import resolve
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.radial import _cpu, reference

__all__ = ["RadialBasis", "hidden_features"]


class RadialBasis:
    """Basis functions of the edge lengths, evaluated once for all networks that start from them.

    Args:
        lengths: Edge lengths in Å.
        functions: The basis functions as rows, [n] -> [n, size], differentiable.
        slopes: Their derivatives, same shapes.
    """

    def __init__(
        self,
        lengths: Float[Tensor, " edges"],
        functions: Callable[[Tensor], Tensor],
        slopes: Callable[[Tensor], Tensor],
    ) -> None:
        self.lengths = lengths
        self.functions = functions
        self.slopes = slopes

    @cached_property
    def values(self) -> Float[Tensor, "edges size"]:
        """The basis at every edge, part of autograd's graph."""
        return self.functions(self.lengths)

    @cached_property
    def table(self) -> _Table:
        """The basis at every distinct length, constants."""
        distinct = _cpu.Distinct(self.lengths)
        with torch.no_grad():
            return _Table(distinct, self.functions(distinct.lengths), self.slopes(distinct.lengths))


class _Table(NamedTuple):
    distinct: _cpu.Distinct
    values: Tensor
    slopes: Tensor


def hidden_features(
    basis: RadialBasis, weights: Sequence[Tensor], gain: float
) -> Float[Tensor, "edges size_out"]:
    """``h <- gain * silu(h W / sqrt(fan_in))`` for every matrix in turn, from the basis on.

    On a CPU with a compiler in one C++ region, once per distinct length; otherwise in plain torch.

    Args:
        basis: The basis at the edges' lengths.
        weights: Matrices [fan_in, fan_out] of the hidden layers.
        gain: Factor of the activation.
    """
    dtypes = {tensor.dtype for tensor in (basis.lengths, *weights)}
    device = basis.lengths.device.type
    resolution = resolve(
        "auto",
        family="radial",
        implemented=("cpu", "reference"),
        device=device,
        why_not=why_unavailable,
    )
    if resolution.backend == "cpu" and len(weights) > 0 and len(dtypes) == 1:
        features: Tensor = _Hidden.apply(basis, gain, basis.lengths, *weights)[0]  # type: ignore[no-untyped-call]
        return features
    return reference.hidden_features(basis.values, weights, gain)


class _Hidden(torch.autograd.Function):
    """Features at the edges and slopes at the distinct lengths.

    The slopes carry what the forces owe to the weights; what they owe to the lengths is the matter
    of `_LengthGradient`. Where gradients of the weights are to be differentiated again, which no
    training on forces does, the definition takes over.
    """

    @staticmethod
    def forward(
        ctx: Any, basis: RadialBasis, gain: float, lengths: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = tuple(weight.contiguous() for weight in weights)
        features, slopes = _cpu.forward(*basis.table, weights, gain, ctx.needs_input_grad[2])
        ctx.basis, ctx.gain = basis, gain
        ctx.save_for_backward(lengths, slopes, *weights)
        ctx.set_materialize_grads(False)
        return features, slopes

    @staticmethod
    def backward(ctx: Any, grad_features: Tensor | None, grad_slopes: Tensor | None) -> Any:
        lengths, slopes, *weights = ctx.saved_tensors
        to_lengths, *to_weights = wanted_gradients(ctx, [lengths, *weights])
        grads: list[Tensor | None] = [None] * (3 + len(weights))
        if grad_features is not None:
            grad_features = grad_features.contiguous()
        if any(to_weights) and torch.is_grad_enabled():
            operands = as_own_nodes(lengths, *weights)
            features = _definition(ctx.basis, operands, ctx.gain)
            grads[2:] = torch.autograd.grad(features, operands, grad_features, create_graph=True)
            return tuple(grads)
        if to_lengths and grad_features is not None:
            grads[2] = _LengthGradient.apply(  # type: ignore[no-untyped-call]
                ctx.basis, ctx.gain, grad_features, slopes, lengths, *weights
            )
        if any(to_weights):
            grads[3:] = _cpu.backward(
                *ctx.basis.table, weights, ctx.gain, grad_features, grad_slopes
            )
        return tuple(grads)


class _LengthGradient(torch.autograd.Function):
    """``dE/dr[e] = <dE/dh[e], h'(r[e])>``, its derivatives by the slopes or by the definition."""

    @staticmethod
    def forward(
        ctx: Any,
        basis: RadialBasis,
        gain: float,
        grad_features: Tensor,
        slopes: Tensor,
        lengths: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.basis, ctx.gain = basis, gain
        ctx.save_for_backward(grad_features, slopes, lengths, *weights)
        return _cpu.length_gradient(basis.table.distinct, grad_features, slopes)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        grad_features, slopes, lengths, *weights = ctx.saved_tensors
        wanted = wanted_gradients(ctx, ctx.saved_tensors)
        grads: list[Tensor | None] = [None] * (5 + len(weights))
        if wanted[2] or torch.is_grad_enabled():
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                operands = as_own_nodes(grad_features, lengths, *weights)
                features = _definition(ctx.basis, operands[1:], ctx.gain)
                (gradient,) = torch.autograd.grad(
                    features, operands[1], operands[0], create_graph=True
                )
            found = torch.autograd.grad(
                gradient, operands, v, create_graph=create_graph, materialize_grads=True
            )
            grads[2], grads[4:] = found[0], found[1:]
        else:
            grads[2], grads[3] = _cpu.length_gradient_backward(
                ctx.basis.table.distinct, v.contiguous(), grad_features, slopes
            )
        return tuple(grads)


def _definition(basis: RadialBasis, operands: Sequence[Tensor], gain: float) -> Tensor:
    lengths, *weights = operands
    return reference.hidden_features(basis.functions(lengths), weights, gain)
