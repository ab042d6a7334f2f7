"""The equivariant norm: C++ beside the definition, two derivatives, layer norm, equivariance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from eqtp.kernels.codegen.availability import cpu_serves
from eqtp.kernels.equivariant_norm import equivariant_norm, reference
from eqtp.so3 import rand_matrix, wigner_D

TOLERANCES = {
    torch.float64: 1e-11,  # relative: sums of a row's few hundred numbers, twice differentiated
    torch.float32: 2e-4,
}


def inputs(lmax: int, channels: int, rows: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(rows, (lmax + 1) ** 2, channels), (lmax + 1, channels), (channels,)]
    return [torch.randn(shape, dtype=dtype) + 0.3 for shape in shapes]


def derivatives(function: object, tensors: list[Tensor], activation: bool) -> list[Tensor]:
    """The result, its gradients, and those of a force loss: a function of the gradient in x."""
    assert callable(function)
    torch.manual_seed(1)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    x = leaves[0]
    out = function(*leaves, eps=1e-3, activation=activation)
    upper = torch.randn_like(out).requires_grad_()
    plain = torch.autograd.grad(out, leaves, upper, retain_graph=True)
    (force,) = torch.autograd.grad(out, x, upper, create_graph=True)
    ends, v = [*leaves, upper], torch.randn_like(force)
    second = torch.autograd.grad(force, ends, v, materialize_grads=True)
    return [out, *plain, force, *second]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 37])
@pytest.mark.parametrize(("lmax", "channels"), [(0, 1), (0, 19), (1, 3), (3, 16), (2, 33)])
def test_values_and_derivatives_are_the_definition_s(
    lmax: int, channels: int, rows: int, activation: bool, dtype: torch.dtype
) -> None:
    tensors = inputs(lmax, channels, rows, dtype)
    assert cpu_serves(*tensors)
    found = derivatives(equivariant_norm, tensors, activation)
    expected = derivatives(reference.equivariant_norm, tensors, activation)
    for a, b in zip(found, expected, strict=True):
        scale = float(b.abs().max()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCES[dtype] * max(scale, 1.0))


@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("lmax", [0, 2])
def test_derivatives_are_differences(lmax: int, activation: bool) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(lmax, 3, 2)]

    def function(*leaves: Tensor) -> Tensor:
        return equivariant_norm(*leaves, eps=1e-2, activation=activation)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)

    def force(*leaves: Tensor) -> Tensor:
        out = function(*leaves)
        (gradient,) = torch.autograd.grad((out**2).sum(), leaves[0], create_graph=True)
        return gradient

    assert torch.autograd.gradcheck(force, tensors)
    assert torch.autograd.gradgradcheck(force, tensors)


def test_scalars_alone_are_layer_norm() -> None:
    x, gain, bias = inputs(0, 24, 7)
    expected = layer_norm(x, (24,), gain[0], bias, 1e-5)
    torch.testing.assert_close(equivariant_norm(x, gain, bias), expected)
    torch.testing.assert_close(equivariant_norm(x, gain, bias, activation=True), silu(expected))


def test_rotated_features_are_rotated() -> None:
    x, gain, bias = inputs(3, 5, 4)
    matrix = rand_matrix()
    rotation = torch.block_diag(*(wigner_D(l, matrix) for l in range(4)))
    expected = rotation @ equivariant_norm(x, gain, bias)
    torch.testing.assert_close(equivariant_norm(rotation @ x, gain, bias), expected)


def test_every_degree_counts_the_same() -> None:
    x, gain, bias = inputs(2, 8, 5)
    out = equivariant_norm(x, torch.ones_like(gain), torch.zeros_like(bias), eps=0.0)
    squares = torch.stack([part.square().mean((1, 2)) for part in out.split([1, 3, 5], 1)])
    torch.testing.assert_close(squares.mean(0), torch.ones(5))
    torch.testing.assert_close(out[:, 0].mean(1), torch.zeros(5))


def test_nothing_but_zeros() -> None:
    tensors = inputs(2, 16, 3)
    tensors[0].zero_()
    for value in derivatives(equivariant_norm, tensors, activation=True):
        assert torch.isfinite(value).all()


def test_strided_operands() -> None:
    x, gain, bias = inputs(1, 16, 6)
    strided = torch.stack([x, x], 1)[:, 1]
    assert torch.equal(equivariant_norm(strided, gain, bias), equivariant_norm(x, gain, bias))


def test_wrong_shapes() -> None:
    x, gain, bias = inputs(1, 4, 2)
    with pytest.raises(ValueError, match=r"\(lmax \+ 1\)\^2.*got \(2, 3, 4\)"):
        equivariant_norm(x[:, :3], gain, bias)
    with pytest.raises(ValueError, match=r"gain \[lmax \+ 1, channels\]"):
        equivariant_norm(x, gain[:, :2], bias)
