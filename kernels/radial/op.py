"""Radial networks at the lengths of the edges, differentiable to any order."""

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
from eqtp.kernels.radial.reference import Activation

__all__ = ["Activation", "RadialBasis", "radial_network"]


class RadialBasis:
    """Basis functions of the edge lengths, evaluated once for all networks that start from them.

    Args:
        lengths: Edge lengths in Å.
        functions: The basis functions as rows, [n] -> [n, size], differentiable.
        with_slopes: The basis functions and their derivatives, same shapes; not differentiated.
    """

    def __init__(
        self,
        lengths: Float[Tensor, " edges"],
        functions: Callable[[Tensor], Tensor],
        with_slopes: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.lengths = lengths
        self.functions = functions
        self.with_slopes = with_slopes

    @cached_property
    def is_compiled(self) -> bool:
        """Whether networks run as C++, once per distinct length; otherwise in plain torch."""
        resolution = resolve(
            "auto",
            family="radial",
            implemented=("cpu", "reference"),
            device=self.lengths.device.type,
            why_not=why_unavailable,
        )
        return resolution.backend == "cpu" and self.lengths.dtype in (torch.float32, torch.float64)

    @cached_property
    def values(self) -> Float[Tensor, "edges size"]:
        """The basis at every edge, part of autograd's graph."""
        return self.functions(self.lengths)

    @cached_property
    def table(self) -> _Table:
        """The basis at every distinct length, constants."""
        distinct = _cpu.Distinct(self.lengths)
        with torch.no_grad():
            return _Table(distinct, *self.with_slopes(distinct.lengths))


class _Table(NamedTuple):
    distinct: _cpu.Distinct
    values: Tensor
    slopes: Tensor


def radial_network(
    basis: RadialBasis, weights: Sequence[Tensor], activation: Activation
) -> Float[Tensor, "edges size_out"]:
    """``h <- gain * silu(h W / sqrt(fan_in))`` for every matrix in turn, from the basis on.

    Args:
        basis: The basis at the edges' lengths.
        weights: Matrices [fan_in, fan_out].
        activation: The factor, and whether the last layer has the activation, too.
    """
    dtype = basis.lengths.dtype
    if basis.is_compiled and weights and all(weight.dtype == dtype for weight in weights):
        result: Tensor = _Network.apply(basis, activation, basis.lengths, *weights)[0]  # type: ignore[no-untyped-call]
        return result
    return reference.radial_network(basis.values, weights, activation)


class _Network(torch.autograd.Function):
    """Values at the edges and slopes at the distinct lengths.

    The slopes carry what the forces owe to the weights; what they owe to the lengths is the matter
    of `_LengthGradient`. Where gradients of the weights are to be differentiated again, which no
    training on forces does, the definition takes over.
    """

    @staticmethod
    def forward(
        ctx: Any, basis: RadialBasis, activation: Activation, lengths: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights = tuple(weight.contiguous() for weight in weights)
        table = basis.table
        values, slopes = _cpu.forward(*table, weights, activation, ctx.needs_input_grad[2])
        ctx.basis, ctx.activation = basis, activation
        ctx.save_for_backward(lengths, slopes, *weights)
        ctx.set_materialize_grads(False)
        return values, slopes

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor | None, grad_slopes: Tensor | None) -> Any:
        lengths, slopes, *weights = ctx.saved_tensors
        to_lengths, *to_weights = wanted_gradients(ctx, [lengths, *weights])
        grads: list[Tensor | None] = [None] * (3 + len(weights))
        if grad_values is not None:
            grad_values = grad_values.contiguous()
        if any(to_weights) and torch.is_grad_enabled():
            operands = as_own_nodes(lengths, *weights)
            values = _definition(ctx.basis, operands, ctx.activation)
            grads[2:] = torch.autograd.grad(values, operands, grad_values, create_graph=True)
            return tuple(grads)
        if to_lengths and grad_values is not None:
            grads[2] = _LengthGradient.apply(  # type: ignore[no-untyped-call]
                ctx.basis, ctx.activation, grad_values, slopes, lengths, *weights
            )
        if any(to_weights):
            table: _Table = ctx.basis.table
            grads[3:] = _cpu.backward(*table, weights, ctx.activation, grad_values, grad_slopes)
        return tuple(grads)


class _LengthGradient(torch.autograd.Function):
    """``dE/dr[e] = <dE/dw[e], w'(r[e])>``, its derivatives by the slopes or by the definition."""

    @staticmethod
    def forward(
        ctx: Any,
        basis: RadialBasis,
        activation: Activation,
        grad_values: Tensor,
        slopes: Tensor,
        lengths: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.basis, ctx.activation = basis, activation
        ctx.save_for_backward(grad_values, slopes, lengths, *weights)
        return _cpu.length_gradient(basis.table.distinct, grad_values, slopes)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        grad_values, slopes, lengths, *weights = ctx.saved_tensors
        wanted = wanted_gradients(ctx, ctx.saved_tensors)
        grads: list[Tensor | None] = [None] * (5 + len(weights))
        if wanted[2] or torch.is_grad_enabled():
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                operands = as_own_nodes(grad_values, lengths, *weights)
                values = _definition(ctx.basis, operands[1:], ctx.activation)
                (gradient,) = torch.autograd.grad(
                    values, operands[1], operands[0], create_graph=True
                )
            found = torch.autograd.grad(
                gradient, operands, v, create_graph=create_graph, materialize_grads=True
            )
            grads[2], grads[4:] = found[0], found[1:]
        else:
            grads[2], grads[3] = _cpu.length_gradient_backward(
                ctx.basis.table.distinct, v.contiguous(), grad_values, slopes
            )
        return tuple(grads)


def _definition(basis: RadialBasis, operands: Sequence[Tensor], activation: Activation) -> Tensor:
    lengths, *weights = operands
    return reference.radial_network(basis.functions(lengths), weights, activation)
