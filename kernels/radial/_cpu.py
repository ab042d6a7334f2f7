"""The radial network as C++: one region per call, gradients by recomputation.

Everything is a function of the length alone, so it is evaluated once per distinct length (an edge
and its reverse have one), together with its slope w'(r). The forces then need no matrix product,
``dE/dr[e] = <dE/dw[e], w'(r[e])>``, and a loss on forces is one reverse pass over values and slopes
together, layer by layer:

    z = h_before W + b,   h = gain silu(z),   h' = gain silu'(z) z',   z' = h'_before W
    grad z' = gain silu'(z) grad h'
    grad z  = gain (silu'(z) grad h + silu''(z) z' grad h')

The gradients of the weights are summed in a fixed number of chunks, in order: the same result for
any number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.kernels.codegen import memory
from eqtp.kernels.codegen.compiler import load_library
from eqtp.kernels.radial._cpu_source import source
from eqtp.kernels.radial.reference import Activation

__all__ = ["Distinct", "backward", "forward", "length_gradient", "length_gradient_backward"]


class Distinct:
    """Which edges have the same length, bit by bit.

    Attributes:
        lengths: The distinct lengths, ascending.
        order: The edges, those of one length together.
        pointers: Where in `order` each length starts, and the end.
    """

    def __init__(self, lengths: Tensor) -> None:
        ascending, self.order = torch.sort(lengths.detach(), stable=True)
        changes = (ascending[1:] != ascending[:-1]).nonzero().squeeze(1) + 1
        starts = torch.nn.functional.pad(changes, (1, 0))[: len(ascending)]
        self.lengths = ascending.index_select(0, starts)
        self.pointers = torch.nn.functional.pad(starts, (0, 1), value=len(ascending))


def forward(
    distinct: Distinct,
    basis: Tensor,
    slope: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Activation,
    slopes: bool,
) -> tuple[Tensor, Tensor]:
    """Features of every edge and, if asked for, slopes of every distinct length."""
    num, out = len(distinct.lengths), weights[-1].shape[1]
    values = memory.empty(basis, len(distinct.order), out)
    result = memory.empty(basis, num if slopes else 0, out)
    _library(basis.dtype).forward(
        *_network(weights, biases, activation),
        ctypes.c_int64(num),
        *_pointers(basis, slope, distinct.order, distinct.pointers, values),
        *_pointers(result if slopes else None),
        torch.get_num_threads(),
    )
    return values, result


def backward(
    distinct: Distinct,
    basis: Tensor,
    slope: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Activation,
    grad_values: Tensor | None,
    grad_slopes: Tensor | None,
) -> list[Tensor]:
    """Gradients of the weights, then of the biases."""
    grads, to_biases = [
        [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]
        for tensors in (weights, biases)
    ]
    _library(basis.dtype).backward(
        *_network(weights, biases, activation),
        ctypes.c_int64(len(distinct.lengths)),
        *_pointers(basis, slope, distinct.order, distinct.pointers, grad_values, grad_slopes),
        _array(grads),
        _array(to_biases) if biases else None,
        torch.get_num_threads(),
    )
    return grads + to_biases


def length_gradient(distinct: Distinct, grad_values: Tensor, slopes: Tensor) -> Tensor:
    """Gradient of the lengths of all edges."""
    grad = slopes.new_empty(len(distinct.order))
    _library(slopes.dtype).length_gradient(
        ctypes.c_int64(len(distinct.lengths)),
        ctypes.c_int64(slopes.shape[1]),
        *_pointers(distinct.order, distinct.pointers, grad_values, slopes, grad),
        torch.get_num_threads(),
    )
    return grad


def length_gradient_backward(
    distinct: Distinct, v: Tensor, grad_values: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of <v, length_gradient> in the values' gradients and in the slopes."""
    to_values = memory.empty(grad_values, *grad_values.shape)
    to_slopes = memory.empty(slopes, *slopes.shape)
    _library(slopes.dtype).length_gradient_backward(
        ctypes.c_int64(len(distinct.lengths)),
        ctypes.c_int64(slopes.shape[1]),
        *_pointers(distinct.order, distinct.pointers, v, grad_values, slopes),
        *_pointers(to_values, to_slopes),
        torch.get_num_threads(),
    )
    return to_values, to_slopes


@lru_cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    library = load_library(source(dtype))
    for name in ("forward", "backward", "length_gradient", "length_gradient_backward"):
        getattr(library, name).restype = None
    return library


def _network(
    weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Activation
) -> tuple[object, ...]:
    sizes = [weights[0].shape[0], *(weight.shape[1] for weight in weights)]
    return (
        ctypes.c_int64(len(weights)),
        ctypes.c_int64(len(weights) - 1 + activation.on_last),
        (ctypes.c_int64 * len(sizes))(*sizes),
        ctypes.c_double(activation.gain),
        _array(weights),
        _array(biases) if biases else None,
    )


def _array(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
