"""Conversions between spherical components, matrices and Cartesian tensors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.irreps import Irreps
from eqtp.layout import to_layout
from eqtp.so3 import (
    convert,
    matrix_basis,
    rand_matrix,
    spherical_harmonics,
    traceless_basis,
    wigner_D,
)

TOLERANCE = 1e-12  # absolute, of numbers of order 1; 5e-15 measured
TENSORNET = "3x0e+3x1o+3x2e"


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0.0, atol=TOLERANCE)


def features(irreps: str, *rows: int) -> Tensor:
    return torch.randn(*rows, Irreps(irreps).dim, dtype=torch.float64)


def rotated(x: Tensor, irreps: str, rotation: Tensor) -> Tensor:
    """D x for every block, with the sign of an improper rotation."""
    sign = torch.det(rotation).sign()
    parts = []
    for block, (mul, ir) in zip(
        x.split([mul * ir.dim for mul, ir in Irreps(irreps)], -1), Irreps(irreps), strict=True
    ):
        matrix = wigner_D(ir.l, rotation * sign) * (sign if ir.p < 0 else 1)
        parts.append((block.view(*x.shape[:-1], mul, ir.dim) @ matrix.t()).flatten(-2))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("j", [0, 1, 2, 3])
def test_matrices_are_orthonormal_and_turn(j: int) -> None:
    basis = matrix_basis(j)
    assert_close(torch.einsum("mab,nab->mn", basis, basis), torch.eye(len(basis)).double())
    rotation = rand_matrix(dtype=torch.float64)
    turn = wigner_D(j, rotation)
    for l in range(2 * j + 1):
        block = basis[l**2 : (l + 1) ** 2]
        assert_close(block.transpose(1, 2), (-1) ** l * block)
        turned = torch.einsum("ac,mcd,bd->mab", turn, block, turn)
        assert_close(turned, torch.einsum("nm,nab->mab", wigner_D(l, rotation), block))


@pytest.mark.parametrize("degree", range(8))
def test_tensors_are_symmetric_traceless_and_turn(degree: int) -> None:
    basis = traceless_basis(degree)
    flat = basis.reshape(2 * degree + 1, -1)
    assert_close(flat @ flat.t(), torch.eye(2 * degree + 1).double())
    for a, b in itertools.combinations(range(1, degree + 1), 2):
        assert_close(basis.transpose(a, b), basis)
        trace = basis.diagonal(dim1=a, dim2=b).sum(-1)
        assert_close(trace, torch.zeros_like(trace))
    rotation = rand_matrix(dtype=torch.float64)
    turned = basis
    for _ in range(degree):
        turned = torch.tensordot(turned, rotation, dims=([1], [1]))  # the axes go round
    assert_close(turned, torch.einsum("nm,n...->m...", wigner_D(degree, rotation), basis))


@pytest.mark.parametrize("degree", range(5))
def test_powers_of_a_direction_are_harmonics(degree: int) -> None:
    vector = torch.randn(3, dtype=torch.float64)
    unit = vector / vector.norm()
    power = torch.ones((), dtype=torch.float64)
    for _ in range(degree):
        power = power[..., None] * unit
    contracted = traceless_basis(degree).reshape(2 * degree + 1, -1) @ power.reshape(-1)
    odd = math.prod(range(1, 2 * degree, 2))
    harmonics = spherical_harmonics(degree, vector, normalization="norm")[degree**2 :]
    assert_close(contracted, math.sqrt(math.factorial(degree) / odd) * harmonics)


def test_tensornets_parts() -> None:
    """A multiple of the unit matrix, a cross product's matrix, and a direction's square."""
    v = torch.randn(3, dtype=torch.float64)
    v = v / v.norm()
    eye = torch.eye(3, dtype=torch.float64)
    cross = torch.linalg.cross(v.expand(3, 3), eye).t()
    matrices = torch.stack([eye, cross, torch.outer(v, v) - eye / 3])[:, None]
    found = convert(matrices, "0e+1o+2e", "mat", "sph")
    expected = torch.zeros(3, 9, dtype=torch.float64)
    expected[0, 0] = math.sqrt(3)
    expected[1, 1:4] = -math.sqrt(2) * v
    expected[2, 4:] = math.sqrt(2 / 3) * spherical_harmonics(2, v, normalization="norm")[4:]
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("irreps", "form"),
    [
        (TENSORNET, "mat"),
        ("2x0e", "mat"),
        ("0o+1e+2o", "mat"),
        ("2x0e+2x1e+2x2e+2x3e+2x4e", "mat"),
        ("4x0e", "cart"),
        ("3x1o", "cart"),
        ("2x2e", "cart"),
        ("2x3o", "cart"),
        ("1x4e", "cart"),
    ],
)
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_there_and_back_is_isometric(irreps: str, form: Any, layout: Any) -> None:
    x = features(irreps, 2, 5)
    given = to_layout(x, Irreps(irreps), "mul_ir", layout)
    there = convert(given, irreps, "sph", form, layout=layout)
    assert_close(there, convert(x, irreps, "sph", form))
    assert there.shape[:3] == (2, 5, Irreps(irreps)[0].mul)
    assert_close(there.square().flatten(2).sum(-1), x.square().sum(-1))
    assert_close(convert(there, irreps, form, "sph", layout=layout), given)
    assert convert(given, irreps, "sph", "sph", layout=layout) is given
    assert convert(x[:0], irreps, "sph", form).shape == (0, *there.shape[1:])
    assert convert(there[:0], irreps, form, "sph").shape == x[:0].shape


@pytest.mark.parametrize("improper", [1, -1])
@pytest.mark.parametrize("irreps", [TENSORNET, "3x0e+3x1e+3x2e", "3x0o+3x1e+3x2o", "0o+1o+2o"])
def test_matrices_turn_as_their_irreps_say(irreps: str, improper: int) -> None:
    rotation = improper * rand_matrix(dtype=torch.float64)
    x = features(irreps, 4)
    turned = rotation @ convert(x, irreps, "sph", "mat") @ rotation.t()
    if improper < 0:
        alternating = Irreps(irreps)[0].ir.p != Irreps(irreps)[1].ir.p
        turned = turned.transpose(-1, -2) if alternating else turned
        turned = turned * Irreps(irreps)[0].ir.p
    assert_close(convert(rotated(x, irreps, rotation), irreps, "sph", "mat"), turned)


def test_gradients() -> None:
    x = features(TENSORNET, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: convert(x, TENSORNET, "sph", "mat").sin(), x)


def test_gradients_after_a_first_use_in_inference_mode() -> None:
    irreps = "0e+1e+2e+3e+4e"
    x = features(irreps, 2)
    with torch.inference_mode():
        convert(x, irreps, "sph", "mat")
    (gradient,) = torch.autograd.grad(
        convert(x.requires_grad_(), irreps, "sph", "mat").square().sum(), x
    )
    assert_close(gradient, 2 * x.detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 9), "0e+1o+2e", "sph", "matrix"), "dst must be one of .*got 'matrix'"),
        ((torch.zeros(2, 8), "0e+1o+2e", "sph", "mat"), "must have 9 columns"),
        ((torch.zeros(2, 8), "1o+2e", "sph", "mat"), r"degrees 0 \.\.\. 2j in this order"),
        ((torch.zeros(2, 4), "0e+1o", "sph", "mat"), r"degrees 0 \.\.\. 2j in this order"),
        ((torch.zeros(2, 10), "2x0e+1o+2e", "sph", "mat"), "one multiplicity"),
        ((torch.zeros(2, 9), "0e+1o+2o", "sph", "mat"), "multiplies a matrix by 1 or -1"),
        ((torch.zeros(2, 9), "0e+1o+2e", "sph", "cart"), "convert block by block"),
        ((torch.zeros(2, 11), "5e", "sph", "cart"), "of l <= 4"),
        ((torch.zeros(3, 3, 3), "2x0e+2x1o+2x2e", "mat", "sph"), r"shape \(\.\.\., 2, 3, 3\)"),
        ((torch.zeros(3), "2e", "cart", "sph"), r"shape \(\.\.\., 1, 3, 3\)"),
    ],
)
def test_what_has_no_such_form_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(*arguments)
