"""Radial networks in C++ against their definition, to the third derivative."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from eqtp.kernels.radial import Activation, RadialBasis, radial_network, reference
from eqtp.models.blocks.radial import BesselBasis

TOLERANCES = {
    torch.float64: 1e-12,  # relative to the largest element; 3e-15 measured
    torch.float32: 2e-5,  # sums of up to 101 edges and 64 channels; 1e-6 measured
}
ACTIVATION = Activation(1.7)
SIZES = [(8, 64, 64, 64, 96), (4, 8), (7, 5, 9, 33), (3, 20)]


def lengths_of(num_edges: int, dtype: torch.dtype) -> Tensor:
    """Most lengths occur twice, some more often, some once."""
    half = torch.rand((2 * num_edges + 2) // 3, dtype=dtype) * 5 + 0.3  # some beyond the cutoff
    return torch.cat([half, half])[torch.randperm(num_edges)]


def operands(
    sizes: Sequence[int], num_edges: int, dtype: torch.dtype
) -> tuple[BesselBasis, Tensor, list[Tensor]]:
    basis = BesselBasis(5.0, sizes[0], 5).to(dtype)
    lengths = lengths_of(num_edges, dtype).requires_grad_()
    weights = [torch.randn(i, o, dtype=dtype, requires_grad=True) for i, o in pairwise(sizes)]
    return basis, lengths, weights


def ours(
    basis: BesselBasis,
    lengths: Tensor,
    weights: Sequence[Tensor],
    activation: Activation = ACTIVATION,
    biases: Sequence[Tensor] = (),
) -> Tensor:
    radial = RadialBasis(lengths, basis.forward, basis.with_slope)
    assert radial.is_compiled
    return radial_network(radial, weights, activation, biases)


def biases_of(weights: Sequence[Tensor]) -> list[Tensor]:
    return [torch.randn_like(weight[0]).requires_grad_() for weight in weights]


def assert_close(a: Tensor, b: Tensor) -> None:
    scale = float(b.detach().abs().max()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=0.0, atol=TOLERANCES[b.dtype] * scale)


@pytest.mark.parametrize("p", [2, 5, 6])
def test_slope_is_the_derivative_of_the_basis(p: int) -> None:
    basis = BesselBasis(5.0, 8, p).double()
    r = torch.linspace(0.3, 6.0, 40, requires_grad=True)
    value, slope = basis.with_slope(r)
    assert_close(value.detach(), basis(r).detach())
    columns = [torch.autograd.grad(basis(r)[:, n].sum(), r)[0] for n in range(8)]
    assert_close(slope.detach(), torch.stack(columns, 1))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("activation", [ACTIVATION, Activation(1.7, on_last=True)])
@pytest.mark.parametrize("biased", [False, True])
def test_training_on_forces(
    sizes: Sequence[int], dtype: torch.dtype, activation: Activation, biased: bool
) -> None:
    """Values, forces, and the gradients of a loss on both in the parameters alone."""
    basis, lengths, weights = operands(sizes, 101, dtype)
    biases = biases_of(weights) if biased else []
    covector = torch.randn(101, sizes[-1], dtype=dtype)

    def results(values: Tensor) -> list[Tensor]:
        energy = (values * covector).sin().sum()
        (forces,) = torch.autograd.grad(energy, lengths, create_graph=True)
        loss = forces.square().sum() + energy
        # No force depends on the bias of a layer without activation.
        found = torch.autograd.grad(loss, [*weights, *biases], materialize_grads=True)
        return [values, forces, *found]

    expected = results(reference.radial_network(basis(lengths), weights, activation, biases))
    values = ours(basis, lengths, weights, activation, biases)
    for a, b in zip(results(values), expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("sizes", SIZES[1:])
@pytest.mark.parametrize("biased", [False, True])
def test_third_derivatives(sizes: Sequence[int], biased: bool) -> None:
    basis, lengths, weights = operands(sizes, 23, torch.float64)
    biases = biases_of(weights) if biased else []
    variables = [lengths, *weights, *biases]

    def results(values: Tensor) -> list[Tensor]:
        scalar = values.sin().sum()
        found: tuple[Tensor, ...] = ()
        for _ in range(3):
            found = torch.autograd.grad(scalar, variables, create_graph=True)
            scalar = sum((g.tanh().sum() for g in found), start=torch.zeros(()))
        return list(found)

    expected = results(reference.radial_network(basis(lengths), weights, ACTIVATION, biases))
    values = ours(basis, lengths, weights, ACTIVATION, biases)
    for a, b in zip(results(values), expected, strict=True):
        assert_close(a, b)


def test_frozen_weights_and_lengths() -> None:
    basis, lengths, weights = operands((4, 8, 6), 12, torch.float64)
    frozen = [weights[0].detach(), weights[1]]
    values = ours(basis, lengths.detach(), frozen)
    expected = reference.radial_network(basis(lengths.detach()), frozen, ACTIVATION)
    assert_close(values, expected)
    (grad,) = torch.autograd.grad(values.sum(), weights[1])
    assert_close(grad, torch.autograd.grad(expected.sum(), weights[1])[0])


@pytest.mark.parametrize("num_edges", [0, 1, 2])
def test_few_edges(num_edges: int) -> None:
    basis, lengths, weights = operands((4, 8, 6), num_edges, torch.float64)
    values = ours(basis, lengths, weights)
    assert values.shape == (num_edges, 6)
    (forces,) = torch.autograd.grad(values.sum(), lengths, create_graph=True)
    grads = torch.autograd.grad(forces.square().sum() + values.sum(), weights)
    assert all(grad.isfinite().all() for grad in grads)


def test_one_length_for_all_edges() -> None:
    basis, _, weights = operands((4, 8, 6), 1, torch.float64)
    lengths = torch.full((50,), 1.5, requires_grad=True)
    values = ours(basis, lengths, weights)
    assert torch.equal(values, values[:1].expand(50, 6))
    assert_close(values, reference.radial_network(basis(lengths), weights, ACTIVATION))


def test_edges_of_one_length_have_their_own_gradients() -> None:
    """The gradient at each edge belongs to it, not to the others of the same length."""
    basis, _, weights = operands((4, 8, 6), 1, torch.float64)
    lengths = torch.full((3,), 1.5, requires_grad=True)
    values = ours(basis, lengths, weights)
    (grad,) = torch.autograd.grad(values[1].sum(), lengths)
    assert grad[1] != 0
    assert not grad[[0, 2]].any()


def test_large_arguments_do_not_overflow() -> None:
    basis, lengths, weights = operands((4, 8, 6), 9, torch.float32)
    with torch.no_grad():
        weights[0] *= 1e4
    values = ours(basis, lengths, weights)
    assert_close(values, reference.radial_network(basis(lengths), weights, ACTIVATION))


def test_nan_is_not_hidden() -> None:
    basis, lengths, weights = operands((4, 8, 6), 9, torch.float64)
    lengths = lengths.detach().index_fill(0, torch.tensor([2]), torch.nan)
    values = ours(basis, lengths, weights)
    assert values[2].isnan().all()
    assert values[[0, 1, *range(3, 9)]].isfinite().all()


def test_same_result_for_any_number_of_threads() -> None:
    basis, lengths, weights = operands((8, 16, 16), 700, torch.float32)

    def gradients() -> tuple[Tensor, ...]:
        values = ours(basis, lengths, weights)
        (forces,) = torch.autograd.grad(values.sin().sum(), lengths, create_graph=True)
        return torch.autograd.grad(forces.square().sum(), weights)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gradients()
        torch.set_num_threads(3)
        three = gradients()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
