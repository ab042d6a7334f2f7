"""The equivariant norm as C++; `_cpu_source` holds it."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.kernels.codegen import memory
from eqtp.kernels.codegen.compiler import load_library
from eqtp.kernels.equivariant_norm._cpu_source import CHUNKS, source

__all__ = ["forward", "gradient", "second", "weight_gradient"]


def forward(x: Tensor, gain: Tensor, bias: Tensor, eps: float, activation: bool) -> Tensor:
    """The normalised features."""
    out = memory.empty(x, *x.shape)
    _run("forward", x, gain, bias, eps, activation, out)
    return out


def gradient(
    x: Tensor, gain: Tensor, bias: Tensor, grad: Tensor, eps: float, activation: bool
) -> Tensor:
    """Gradient in x."""
    to_x = memory.empty(x, *x.shape)
    _run("gradient", x, gain, bias, eps, activation, grad, to_x)
    return to_x


def weight_gradient(
    x: Tensor, gain: Tensor, bias: Tensor, grad: Tensor, eps: float, activation: bool
) -> tuple[Tensor, Tensor]:
    """Gradients in gain and bias."""
    partial = x.new_zeros(CHUNKS, gain.numel() + bias.numel())
    _run("weight_gradient", x, gain, bias, eps, activation, grad, partial)
    return _weights(partial, gain)


def second(
    x: Tensor, gain: Tensor, bias: Tensor, grad: Tensor, v: Tensor, eps: float, activation: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of <v, gradient> in x, gain, bias and grad."""
    to_x, to_grad = memory.empty(x, *x.shape), memory.empty(x, *x.shape)
    partial = x.new_zeros(CHUNKS, gain.numel() + bias.numel())
    _run("second", x, gain, bias, eps, activation, grad, v, to_x, to_grad, partial)
    return to_x, *_weights(partial, gain), to_grad


def _weights(partial: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the chunks, in their order."""
    to_gain, to_bias = partial.sum(0).split([gain.numel(), gain.shape[1]])
    return to_gain.view_as(gain), to_bias


def _run(
    name: str,
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    eps: float,
    activation: bool,
    *operands: Tensor,
) -> None:
    getattr(_library(x.dtype), name)(
        *map(ctypes.c_int64, (len(x), len(gain) - 1, x.shape[2])),
        ctypes.c_double(eps),
        ctypes.c_int(activation),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, gain, bias, *operands)),
        ctypes.c_int(torch.get_num_threads()),
    )


@lru_cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    library = load_library(source(dtype))
    for name in __all__:
        getattr(library, name).restype = None
    return library
