"""Radial factors and gates as C++; `_cpu_source` holds it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eqtp.kernels.codegen import memory
from eqtp.kernels.codegen.compiler import load_library
from eqtp.kernels.frame_gate._cpu_source import source
from eqtp.kernels.frame_gate.reference import FrameSizes

__all__ = [
    "gate",
    "gate_gradient",
    "gate_second",
    "scale",
    "scale_gradient",
    "scale_second",
]

Orders = Sequence[Tensor]


def scale(y: Tensor, radial: Tensor, sizes: FrameSizes) -> list[Tensor]:
    """The scaled orders."""
    z = _orders(radial, sizes)
    _run("scale", radial, sizes, y, radial, z)
    return z


def scale_gradient(
    y: Tensor, radial: Tensor, grads: Orders, sizes: FrameSizes
) -> tuple[Tensor, Tensor]:
    """Gradients in y and radial."""
    to_y, to_radial = memory.empty(y, *y.shape), memory.empty(radial, *radial.shape)
    _run("scale_gradient", radial, sizes, y, radial, grads, to_y, to_radial)
    return to_y, to_radial


def scale_second(
    y: Tensor, radial: Tensor, grads: Orders, v_y: Tensor, v_radial: Tensor, sizes: FrameSizes
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of <v, scale_gradient> in y, radial and grads."""
    to_y, to_radial = memory.empty(y, *y.shape), memory.empty(radial, *radial.shape)
    to_grads = _orders(radial, sizes)
    operands = (y, radial, grads, v_y, v_radial, to_y, to_radial, to_grads)
    _run("scale_second", radial, sizes, *operands)
    return to_y, to_radial, to_grads


def gate(hidden: Orders, factor: Tensor, sizes: FrameSizes) -> list[Tensor]:
    """The gated orders."""
    z = _orders(factor, sizes)
    _run("gate", factor, sizes, hidden, factor, z)
    return z


def gate_gradient(
    hidden: Orders, factor: Tensor, grads: Orders, sizes: FrameSizes
) -> tuple[Tensor, list[Tensor]]:
    """Gradients in factor and hidden."""
    to_factor, to_hidden = torch.empty_like(factor), [memory.empty(h, *h.shape) for h in hidden]
    _run("gate_gradient", factor, sizes, hidden, factor, grads, to_hidden, to_factor)
    return to_factor, to_hidden


def gate_second(
    hidden: Orders,
    factor: Tensor,
    grads: Orders,
    v_factor: Tensor,
    v_hidden: Orders,
    sizes: FrameSizes,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients of <v, gate_gradient> in factor, hidden and grads."""
    to_factor, to_hidden = torch.empty_like(factor), [memory.empty(h, *h.shape) for h in hidden]
    to_grads = _orders(factor, sizes)
    operands = (hidden, factor, grads, v_hidden, v_factor, to_hidden, to_factor, to_grads)
    _run("gate_second", factor, sizes, *operands)
    return to_factor, to_hidden, to_grads


def _orders(like: Tensor, sizes: FrameSizes) -> list[Tensor]:
    """Fresh memory for every order."""
    return [
        memory.empty(like, len(like), 1 + (m > 0), width) for m, width in enumerate(sizes.widths)
    ]


def _run(name: str, like: Tensor, sizes: FrameSizes, *operands: Tensor | Orders) -> None:
    pointers: list[Any] = [
        ctypes.c_void_p(operand.data_ptr())
        if isinstance(operand, Tensor)
        else (ctypes.c_void_p * len(operand))(*(tensor.data_ptr() for tensor in operand))
        for operand in operands
    ]
    numbers = (len(like), sizes.lmax, sizes.m_max, sizes.channels)
    getattr(_library(like.dtype), name)(
        *map(ctypes.c_int64, numbers), *pointers, ctypes.c_int(torch.get_num_threads())
    )


@lru_cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    library = load_library(source(dtype))
    for name in __all__:
        getattr(library, name).restype = None
    return library
