"""The Triton kernels of 3x3 matrices, in Triton's interpreter and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from triton_checks import assert_no_spills, compiled, interpreted, run_in_the_interpreter

from eqtp.benchmarks.triton_registers import TARGETS, compile_matrices
from eqtp.kernels.matrix import Kind, _ops, _triton, reference

TOLERANCES = {
    torch.float64: 1e-13,  # relative to the largest value; a few dozen terms
    torch.float32: 1e-5,
}


def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


def derivatives(function: Callable[..., Tensor], *operands: Tensor) -> list[Tensor]:
    """Value, gradients and second gradients of a function of the value."""
    operands = tuple(one.detach().requires_grad_() for one in operands)
    value = function(*operands)
    first = torch.autograd.grad(value.tanh().sum(), operands, create_graph=True)
    scalar = torch.stack([one.sin().sum() for one in first]).sum()
    return [value, *first, *torch.autograd.grad(scalar, operands)]


def check(ours: Callable[..., Tensor], exact: Callable[..., Tensor], *operands: Tensor) -> None:
    results = derivatives(ours, *operands)
    targets = derivatives(exact, *(one.double() for one in operands))
    for result, target in zip(results, targets, strict=True):
        assert result.dtype == operands[0].dtype
        assert result.shape == target.shape
        scale = float(target.detach().abs().max()) if target.numel() else 1.0
        atol = TOLERANCES[result.dtype] * scale
        torch.testing.assert_close(result.double(), target, rtol=0, atol=atol)


@interpreted
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("size", [(0, 3), (1, 1), (5, 3), (3, 50), (4, 32)])
def test_product(size: tuple[int, int], kind: Kind, dtype: torch.dtype) -> None:
    x, y = torch.randn(2, size[0], 9 * size[1], dtype=torch.float64).to(dtype)
    check(
        lambda x, y: _ops.product(x, y, kind, False, False, 1, "triton"),
        lambda x, y: reference.matrix_product(x, y, kind),
        x,
        y,
    )


@interpreted
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [(0, 3), (1, 1), (5, 3), (3, 50), (4, 32)])
def test_normalize(size: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(size[0], 9 * size[1], dtype=torch.float64).to(dtype)
    check(lambda x: _ops.normalize(x, "triton"), reference.matrix_normalize, x)


@interpreted
@pytest.mark.parametrize("transpose", [(False, False), (False, True), (True, False), (True, True)])
def test_transposed(transpose: tuple[bool, bool]) -> None:
    x, y = torch.randn(2, 3, 18, dtype=torch.float64)
    ours = _triton.product(x, y, "product", *transpose, 1)
    exact = reference.matrix_product(x, y, "product", *transpose)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-13)


def test_another_number_of_rows_is_not_compiled_again(
    launches: list[tuple[Any, tuple[int, ...]]],
) -> None:
    for number in (1, 16, 17, 1000):
        x = torch.randn(number, 9 * 64, dtype=torch.float32)
        _triton.normalize(x)
    assert [grid for _, grid in launches] == [(1,), (8,), (9,), (500,)]
    first = launches[0][0]
    assert all(kernel is first for kernel, _ in launches)
    for instruction in ("div.rn.f32", "fma.rn.f32"):
        assert instruction in first.asm["ptx"]


@compiled
@pytest.mark.parametrize("name", ["product_00", "anticommutator_01", "second_gradient"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_spills(name: str, target: str, dtype: torch.dtype) -> None:
    (usage,) = compile_matrices(name, target, dtype)
    assert_no_spills(usage, f"{name}, {target}, {dtype}")
