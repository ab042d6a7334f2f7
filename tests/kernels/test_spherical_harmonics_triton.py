"""The Triton kernels of the spherical harmonics, in Triton's interpreter and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton_checks import assert_no_spills, compiled, interpreted, run_in_the_interpreter

from eqtp.benchmarks.triton_registers import HARMONICS, TARGETS, compile_harmonics
from eqtp.kernels.spherical_harmonics import _triton, op, reference
from eqtp.so3.solid_harmonics import Normalization

TOLERANCES = {
    torch.float64: 1e-12,  # relative to the largest value
    torch.float32: 5e-6,  # a rounding of 6e-8 in v / |v| enters l times
}


def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


def through_triton(lmax: int, vec: Tensor, *options: object) -> Tensor:
    """The op with the kernels that it takes for CUDA tensors."""
    result: Tensor = op._Harmonics.apply(vec, _triton, lmax, *options)  # type: ignore[no-untyped-call]
    return result


def derivatives(
    function: object, lmax: int, vec: Tensor, g: Tensor, d: Tensor, *options: object
) -> list[Tensor]:
    """Value, gradient, and the gradient of <gradient, d> in the covector and in the vectors."""
    vec, g = vec.detach().requires_grad_(), g.detach().requires_grad_()
    value = function(lmax, vec, *options)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(value, vec, g, create_graph=True, materialize_grads=True)
    results = [value, gradient]
    for operand in (g, vec):
        results += torch.autograd.grad(
            gradient, operand, d, retain_graph=True, materialize_grads=True
        )
    return results


def check(lmax: int, vec: Tensor, normalization: Normalization, normalize: bool) -> None:
    g = torch.randn(len(vec), (lmax + 1) ** 2, dtype=torch.float64).to(vec.dtype)
    d = torch.randn(vec.shape, dtype=torch.float64).to(vec.dtype)
    options = (normalization, normalize)
    ours = derivatives(through_triton, lmax, vec, g, d, *options)
    exact = derivatives(
        reference.spherical_harmonics, lmax, vec.double(), g.double(), d.double(), *options
    )
    for result, target in zip(ours, exact, strict=True):
        assert result.dtype == vec.dtype
        assert result.shape == target.shape
        scale = max(float(target.detach().abs().max()), 1.0) if target.numel() else 1.0
        atol = TOLERANCES[vec.dtype] * scale
        torch.testing.assert_close(result.double(), target, rtol=0, atol=atol)


@interpreted
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("normalization", ["component", "norm", "integral"])
@pytest.mark.parametrize("lmax", [1, 3])
def test_matches_the_definition(lmax: int, normalization: Normalization, normalize: bool) -> None:
    check(lmax, torch.randn(5, 3, dtype=torch.float64), normalization, normalize)


@interpreted
@pytest.mark.parametrize("normalize", [True, False])
def test_degrees_in_several_kernels(normalize: bool) -> None:
    check(8, torch.randn(4, 3, dtype=torch.float64), "component", normalize)


@interpreted
@pytest.mark.parametrize("number", [0, 1, 127, 128, 129, 257])
def test_numbers_of_vectors(number: int) -> None:
    check(1, torch.randn(number, 3, dtype=torch.float64), "component", True)


@interpreted
def test_degree_zero_is_constant() -> None:
    vec, d = torch.randn(2, 5, 3, dtype=torch.float64)
    g = torch.randn(5, 1, dtype=torch.float64)
    value, *rest = derivatives(through_triton, 0, vec, g, d, "component", True)
    assert torch.equal(value, torch.ones_like(value))
    assert not any(t.any() for t in rest)


@interpreted
def test_float32() -> None:
    check(3, torch.randn(5, 3, dtype=torch.float32), "component", True)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_vector_has_the_constant_and_no_derivatives(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    vec = torch.tensor([[0.0, 0.0, 0.0], [tiny, 0.0, 0.0], [torch.nan, 0.0, 1.0]], dtype=dtype)
    g, d = torch.randn(3, 16, dtype=dtype), torch.randn(3, 3, dtype=dtype)
    value, gradient, along, _ = derivatives(through_triton, 3, vec, g, d, "norm", True)
    assert torch.equal(value[:2, 0], torch.ones(2, dtype=dtype))
    assert not value[:2, 1:].any()
    assert not gradient[:2].any()
    assert not along[:2].any()
    assert value[2, 1:].isnan().any()


@pytest.mark.parametrize("lmax", range(_triton.MAX_DEGREE + 1))
def test_kernels_hold_every_degree_once_and_keep_the_limit(lmax: int) -> None:
    parts = _triton._parts(lmax)
    assert [l for part in parts for l in part] == list(range(lmax + 1))
    assert all(part.stop**2 - part.start**2 <= _triton.MAX_COLUMNS for part in parts)


def test_another_number_of_vectors_is_not_compiled_again(
    launches: list[tuple[Any, tuple[int, ...]]],
) -> None:
    for number in (1, 16, 17, 1000):
        _triton.forward(3, torch.randn(number, 3, dtype=torch.float32), "component", True)
    assert [grid for _, grid in launches] == [(1,), (1,), (1,), (8,)]
    first = launches[0][0]
    assert all(kernel is first for kernel, _ in launches)
    for instruction in ("sqrt.rn.f32", "div.rn.f32", "fma.rn.f32"):
        assert instruction in first.asm["ptx"]


def check_spills(name: str, pass_name: str, target: str, dtype: torch.dtype) -> None:
    for number, usage in enumerate(compile_harmonics(name, pass_name, target, dtype)):
        assert_no_spills(usage, f"{name} {pass_name}, kernel {number}, {target}, {dtype}")


@compiled
@pytest.mark.parametrize("pass_name", _triton.ARGUMENTS)
@pytest.mark.parametrize("target", TARGETS)
def test_low_degrees_do_not_spill(target: str, pass_name: str) -> None:
    check_spills("harmonics-3", pass_name, target, torch.float32)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("pass_name", _triton.ARGUMENTS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HARMONICS)
def test_degrees_do_not_spill(name: str, dtype: torch.dtype, target: str, pass_name: str) -> None:
    check_spills(name, pass_name, target, dtype)
