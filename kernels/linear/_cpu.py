"""The linear maps as C++; `_cpu_source` holds it."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eqtp.kernels.codegen import memory
from eqtp.kernels.codegen.compiler import load_library
from eqtp.kernels.linear._cpu_source import source

if TYPE_CHECKING:
    from eqtp.kernels.linear.op import LinearProblem

__all__ = ["forward", "gradient", "weight_gradient"]


def forward(x: Tensor, weight: Tensor, problem: LinearProblem, element: Tensor | None) -> Tensor:
    """The linear map."""
    out = memory.empty(x, x.shape[0], problem.dim_out)
    _run("forward", problem, element, x, problem.dim_in, weight, out, problem.dim_out)
    return out


def gradient(g: Tensor, weight: Tensor, problem: LinearProblem, element: Tensor | None) -> Tensor:
    """Gradient of x."""
    grad = memory.empty(g, g.shape[0], problem.dim_in)
    _run("gradient", problem, element, g, problem.dim_out, weight, grad, problem.dim_in)
    return grad


def weight_gradient(x: Tensor, g: Tensor, problem: LinearProblem, element: Tensor | None) -> Tensor:
    """Gradient of the weights."""
    grad = x.new_empty(problem.weight_numel)
    arguments = (x, problem.dim_in, g, problem.dim_out, grad)
    _run("weight_gradient", problem, element, *arguments)
    return grad


def _run(
    name: str, problem: LinearProblem, element: Tensor | None, *arguments: Tensor | int
) -> None:
    first = arguments[0]
    assert isinstance(first, Tensor)
    getattr(_library(first.dtype), name)(
        _table(problem),
        len(problem.paths),
        first.shape[0],
        None if element is None else element.data_ptr(),
        problem.num_elements,
        *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments),
        torch.get_num_threads(),
    )


@lru_cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    library = load_library(source(dtype))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    head: list[Any] = [pointer, integer, integer, pointer, integer]
    row: list[Any] = [pointer, integer]
    library.forward.argtypes = [*head, *row, pointer, *row, ctypes.c_int]
    library.gradient.argtypes = library.forward.argtypes
    library.weight_gradient.argtypes = [*head, *row, *row, pointer, ctypes.c_int]
    for name in ("forward", "gradient", "weight_gradient"):
        getattr(library, name).restype = None
    return library


class _Path(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("x", "out", "weight", "mul_in", "mul_out", "dim")),
        ("scale", ctypes.c_double),
    )


@lru_cache(maxsize=1024)
def _table(problem: LinearProblem) -> ctypes.Array[_Path]:
    return (_Path * len(problem.paths))(*(_Path(*path) for path in problem.paths))
