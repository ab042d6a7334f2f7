"""Operations on matrices as `torch.library` ops, closed under differentiation.

eqtp::matrix_product     X Y, X Y - Y X or X Y + Y X, each factor transposed or not; with G the
                         gradient of the result, that of X is G Y^T (or G Y^T -+ Y^T G) and that
                         of Y is X^T G: the same op with other transpositions
eqtp::matrix_normalize   X / (||X||^2 + 1)
eqtp::matrix_normalize_gradient          its gradient, which is symmetric: as a function of the
                                         incoming gradient it is its own transpose
eqtp::matrix_normalize_second_gradient   the gradient of that in X; what is differentiated
                                         further is its formula in plain torch
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from eqtp.autograd import as_own_nodes, wanted_gradients
from eqtp.kernels.matrix import _torch
from eqtp.operators import below_autograd, register

__all__ = ["normalize", "product"]


@cache
def _kernel(backend: str) -> ModuleType:
    """The module of a backend, imported when first needed."""
    return import_module(f"eqtp.kernels.matrix._{backend}")


def product(
    x: Tensor, y: Tensor, kind: str, transpose_x: bool, transpose_y: bool, j: int, backend: str
) -> Tensor:
    """As `reference.matrix_product`."""
    out: Tensor = torch.ops.eqtp.matrix_product.default(
        x, y, kind, transpose_x, transpose_y, j, backend
    )
    return out


def normalize(x: Tensor, backend: str) -> Tensor:
    """As `reference.matrix_normalize`."""
    out: Tensor = torch.ops.eqtp.matrix_normalize.default(x, backend)
    return out


def _gradient(x: Tensor, g: Tensor, backend: str) -> Tensor:
    out: Tensor = torch.ops.eqtp.matrix_normalize_gradient.default(x, g, backend)
    return out


def _second_gradient(x: Tensor, g: Tensor, v: Tensor, backend: str) -> Tensor:
    out: Tensor = torch.ops.eqtp.matrix_normalize_second_gradient.default(x, g, v, backend)
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, kind: str, tx: bool, ty: bool, j: int, backend: str
    ) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.options = kind, tx, ty, (j, backend)
        out: Tensor = below_autograd(
            torch.ops.eqtp.matrix_product.default, x, y, kind, tx, ty, j, backend
        )
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y = operands = ctx.saved_tensors
        kind, tx, ty, where = ctx.options
        want_x, want_y = wanted_gradients(ctx, operands)
        to_x = to_y = None
        if want_x:  # the transpose of a product is the product of the transposes in reverse
            to_x = (
                product(y, g, kind, ty, True, *where)
                if tx
                else product(g, y, kind, False, not ty, *where)
            )
        if want_y:
            to_y = (
                product(g, x, kind, True, tx, *where)
                if ty
                else product(x, g, kind, not tx, False, *where)
            )
        return to_x, to_y, *[None] * 5


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.backend = backend
        out: Tensor = below_autograd(torch.ops.eqtp.matrix_normalize.default, x, backend)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _gradient(x, g, ctx.backend), None


class _NormalizeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.backend = backend
        out: Tensor = below_autograd(
            torch.ops.eqtp.matrix_normalize_gradient.default, x, g, backend
        )
        return out

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, g = operands = ctx.saved_tensors
        want_x, want_g = wanted_gradients(ctx, operands)
        return (
            _second_gradient(x, g, v, ctx.backend) if want_x else None,
            _gradient(x, v, ctx.backend) if want_g else None,
            None,
        )


class _NormalizeSecondGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, v: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(x, g, v)
        out: Tensor = below_autograd(
            torch.ops.eqtp.matrix_normalize_second_gradient.default, x, g, v, backend
        )
        return out

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            operands = as_own_nodes(*ctx.saved_tensors)
            value = _torch.second_gradient(*operands)
        return *torch.autograd.grad(value, operands, u, create_graph=create_graph), None


def _like_first(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _register() -> None:
    """The ops, each computed by the function of its name in the backend's module."""

    def add(name: str, schema: str, function: str, record: type[torch.autograd.Function]) -> None:
        def compute(*args: Any) -> Tensor:
            *operands, backend = args
            out: Tensor = getattr(_kernel(backend), function)(*operands)
            return out

        register(
            name,
            f"({schema}, str backend) -> Tensor",
            compute,
            _like_first,
            lambda apply, *args: apply(record, *args),
        )

    add(
        "matrix_product",
        "Tensor x, Tensor y, str kind, bool transpose_x, bool transpose_y, int j",
        "product",
        _Product,
    )
    add("matrix_normalize", "Tensor x", "normalize", _Normalize)
    add("matrix_normalize_gradient", "Tensor x, Tensor g", "gradient", _NormalizeGradient)
    add(
        "matrix_normalize_second_gradient",
        "Tensor x, Tensor g, Tensor v",
        "second_gradient",
        _NormalizeSecondGradient,
    )


_register()
