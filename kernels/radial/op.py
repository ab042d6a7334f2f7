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

    Attributes:
        is_compiled: Whether networks run as C++, once per distinct length; otherwise, and inside of
            `torch.compile`, in plain torch.
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
        self.is_compiled = not torch.compiler.is_compiling() and _serves(lengths)
        self._values: Tensor | None = None

    @property
    def values(self) -> Float[Tensor, "edges size"]:
        """The basis at every edge, part of autograd's graph."""
        if self._values is None:
            self._values = self.functions(self.lengths)
        return self._values

    @cached_property
    def table(self) -> _Table:
        """The basis at every distinct length, constants."""
        distinct = _cpu.Distinct(self.lengths)
        with torch.no_grad():
            return _Table(distinct, *self.with_slopes(distinct.lengths))


def _serves(lengths: Tensor) -> bool:
    resolution = resolve(
        "auto",
        family="radial",
        implemented=("cpu", "reference"),
        device=lengths.device.type,
        why_not=why_unavailable,
    )
    return resolution.backend == "cpu" and lengths.dtype in (torch.float32, torch.float64)


class _Table(NamedTuple):
    distinct: _cpu.Distinct
    values: Tensor
    slopes: Tensor


def radial_network(
    basis: RadialBasis,
    weights: Sequence[Tensor],
    activation: Activation,
    biases: Sequence[Tensor] = (),
) -> Float[Tensor, "edges size_out"]:
    """``h <- gain * silu(h W / sqrt(fan_in) + b)`` for every matrix in turn, from the basis on.

    Args:
        basis: The basis at the edges' lengths.
        weights: Matrices [fan_in, fan_out].
        activation: The factor, and whether the last layer has the activation, too.
        biases: Vectors [fan_out], one per matrix, or none.
    """
    parameters = (*weights, *biases)
    dtype = basis.lengths.dtype
    if basis.is_compiled and weights and all(one.dtype == dtype for one in parameters):
        network = _Definition(basis, activation, len(weights))
        result: Tensor = _Network.apply(network, basis.lengths, *parameters)[0]  # type: ignore[no-untyped-call]
        return result
    return reference.radial_network(basis.values, weights, activation, biases)


class _Definition(NamedTuple):
    """What a network is beside its lengths and its parameters, weights first."""

    basis: RadialBasis
    activation: Activation
    num_weights: int

    def __call__(self, lengths: Tensor, *parameters: Tensor) -> Tensor:
        """The network in plain torch."""
        features = self.basis.functions(lengths)
        weights, biases = self.split(parameters)
        return reference.radial_network(features, weights, self.activation, biases)

    def split(self, parameters: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Weights and biases."""
        return parameters[: self.num_weights], parameters[self.num_weights :]


class _Network(torch.autograd.Function):
    """Values at the edges and slopes at the distinct lengths.

    The slopes carry what the forces owe to the weights; what they owe to the lengths is the matter
    of `_LengthGradient`. Where gradients of the weights are to be differentiated again, which no
    training on forces does, the definition takes over.
    """

    @staticmethod
    def forward(
        ctx: Any, network: _Definition, lengths: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        parameters = tuple(one.contiguous() for one in parameters)
        values, slopes = _cpu.forward(
            *network.basis.table,
            *network.split(parameters),
            network.activation,
            ctx.needs_input_grad[1],
        )
        ctx.network = network
        ctx.save_for_backward(lengths, slopes, *parameters)
        ctx.set_materialize_grads(False)
        return values, slopes

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor | None, grad_slopes: Tensor | None) -> Any:
        network: _Definition = ctx.network
        lengths, slopes, *parameters = ctx.saved_tensors
        to_lengths, *to_parameters = wanted_gradients(ctx, [lengths, *parameters])
        grads: list[Tensor | None] = [None] * (2 + len(parameters))
        if grad_values is not None:
            grad_values = grad_values.contiguous()
        if any(to_parameters) and torch.is_grad_enabled():
            operands = as_own_nodes(lengths, *parameters)
            values = network(*operands)
            grads[1:] = torch.autograd.grad(values, operands, grad_values, create_graph=True)
            return tuple(grads)
        if to_lengths and grad_values is not None:
            grads[1] = _LengthGradient.apply(  # type: ignore[no-untyped-call]
                network, grad_values, slopes, lengths, *parameters
            )
        if any(to_parameters):
            grads[2:] = _cpu.backward(
                *network.basis.table,
                *network.split(parameters),
                network.activation,
                grad_values,
                grad_slopes,
            )
        return tuple(grads)


class _LengthGradient(torch.autograd.Function):
    """``dE/dr[e] = <dE/dw[e], w'(r[e])>``, its derivatives by the slopes or by the definition."""

    @staticmethod
    def forward(
        ctx: Any,
        network: _Definition,
        grad_values: Tensor,
        slopes: Tensor,
        lengths: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.network = network
        ctx.save_for_backward(grad_values, slopes, lengths, *parameters)
        return _cpu.length_gradient(network.basis.table.distinct, grad_values, slopes)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        network: _Definition = ctx.network
        grad_values, slopes, lengths, *parameters = ctx.saved_tensors
        wanted = wanted_gradients(ctx, ctx.saved_tensors)
        grads: list[Tensor | None] = [None] * (4 + len(parameters))
        if wanted[2] or torch.is_grad_enabled():
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                operands = as_own_nodes(grad_values, lengths, *parameters)
                values = network(*operands[1:])
                (gradient,) = torch.autograd.grad(
                    values, operands[1], operands[0], create_graph=True
                )
            found = torch.autograd.grad(
                gradient, operands, v, create_graph=create_graph, materialize_grads=True
            )
            grads[1], grads[3:] = found[0], found[1:]
        else:
            grads[1], grads[2] = _cpu.length_gradient_backward(
                network.basis.table.distinct, v.contiguous(), grad_values, slopes
            )
        return tuple(grads)
