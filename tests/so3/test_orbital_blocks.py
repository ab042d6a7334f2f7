from __future__ import annotations

import pytest
import torch

from eqtp.so3 import expand, rand_matrix, reduce, wigner_D

# Sums of at most 49 products of numbers of order one; 4e-15 measured.
TOLERANCES = {"identity": 1e-12}
SHELLS = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 3)]


def degrees(l1: int, l2: int) -> range:
    return range(abs(l1 - l2), l1 + l2 + 1)


@pytest.mark.parametrize(("l1", "l2"), SHELLS)
def test_reduce_is_the_inverse_of_expand_and_both_are_isometries(l1: int, l2: int) -> None:
    x = torch.randn(4, 3, (2 * l1 + 1) * (2 * l2 + 1), dtype=torch.float64)
    m = expand(x, l1, l2)
    assert m.shape == (4, 3, 2 * l1 + 1, 2 * l2 + 1)
    assert (reduce(m, l1, l2) - x).abs().max() < TOLERANCES["identity"]
    assert (expand(reduce(m, l1, l2), l1, l2) - m).abs().max() < TOLERANCES["identity"]
    torch.testing.assert_close(m.square().sum((-2, -1)), x.square().sum(-1), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("l1", "l2"), SHELLS)
def test_a_block_turns_on_both_sides(l1: int, l2: int) -> None:
    rotation = rand_matrix(dtype=torch.float64)
    x = torch.randn((2 * l1 + 1) * (2 * l2 + 1), dtype=torch.float64)
    turned = torch.block_diag(*[wigner_D(l, rotation) for l in degrees(l1, l2)]) @ x
    m = expand(x, l1, l2)
    expected = wigner_D(l1, rotation) @ m @ wigner_D(l2, rotation).T
    assert (expand(turned, l1, l2) - expected).abs().max() < TOLERANCES["identity"]


def test_degree_zero_of_two_equal_shells_is_the_trace() -> None:
    m = torch.randn(5, 5, dtype=torch.float64)
    torch.testing.assert_close(reduce(m, 2, 2)[0], m.trace() / 5**0.5)


def test_dtype_gradients_and_empty_batches() -> None:
    x = torch.randn(0, 15)
    assert expand(x, 1, 2).shape == (0, 3, 5)
    assert expand(x.float(), 1, 2).dtype == torch.float32
    assert reduce(torch.randn(0, 3, 5), 1, 2).shape == (0, 15)
    leaf = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: expand(x, 1, 1), leaf)


def test_wrong_shapes_and_degrees_are_refused() -> None:
    with pytest.raises(ValueError, match=r"15 columns, the degrees 1 to 3.*\(2, 14\)"):
        expand(torch.zeros(2, 14), 1, 2)
    with pytest.raises(ValueError, match=r"\[\.\.\., 3, 5\].*\(5, 3\)"):
        reduce(torch.zeros(5, 3), 1, 2)
    with pytest.raises(ValueError, match="l1=-1"):
        expand(torch.zeros(1), -1, 0)
