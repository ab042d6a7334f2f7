from __future__ import annotations

import functools
import itertools

import pytest
import torch

from eqtp.so3 import rand_matrix, wigner_3j, wigner_D

TOLERANCES = {
    "e3nn": 1e-12,  # e3nn's own rounding; 2e-16 measured for l <= 6
    "exact": 1e-14,  # sums of up to 41^2 correctly rounded squares; 1e-15 measured
    "equivariance": 1e-12,  # three products with D^20; 3e-15 measured
}


def triples(lmax: int) -> list[tuple[int, int, int]]:
    degrees = range(lmax + 1)
    return [t for t in itertools.product(degrees, degrees, degrees) if 2 * max(t) <= sum(t)]


def test_agrees_with_e3nn_in_value_and_sign_for_every_triple_to_degree_six() -> None:
    o3 = pytest.importorskip("e3nn", minversion="0.5").o3
    for triple in triples(6):
        expected = o3.wigner_3j(*triple, dtype=torch.float64)
        error = (wigner_3j(*triple) - expected).abs().max()
        assert error < TOLERANCES["e3nn"], triple


@pytest.mark.parametrize("triple", [(7, 7, 7), (8, 5, 10), (9, 10, 2), (12, 3, 9), (11, 11, 12)])
def test_continues_the_sign_convention_of_e3nn_above_degree_six(
    triple: tuple[int, int, int],
) -> None:
    o3 = pytest.importorskip("e3nn", minversion="0.5").o3
    torch.testing.assert_close(
        wigner_3j(*triple),
        o3.wigner_3j(*triple, dtype=torch.float64),
        rtol=0,
        atol=TOLERANCES["e3nn"],
    )


def test_known_tensors() -> None:
    w111 = torch.zeros(3, 3, 3)
    for sign, orders in ((1, ((0, 1, 2), (1, 2, 0), (2, 0, 1))), (-1, ((0, 2, 1), (2, 1, 0)))):
        for order in orders:
            w111[order] = sign * 6**-0.5
    w111[1, 0, 2] = -(6**-0.5)
    torch.testing.assert_close(wigner_3j(1, 1, 1), w111)
    torch.testing.assert_close(wigner_3j(4, 4, 0)[..., 0], torch.eye(9) / 3)


@pytest.mark.parametrize(
    "triple", [(0, 0, 0), (1, 2, 3), (16, 16, 16), (16, 15, 20), (20, 20, 20), (20, 20, 40)]
)
def test_contraction_over_two_degrees_is_a_multiple_of_the_identity(
    triple: tuple[int, int, int],
) -> None:
    w = wigner_3j(*triple)
    dim = 2 * triple[2] + 1
    gram = dim * torch.einsum("ijk,ijl->kl", w, w)
    torch.testing.assert_close(gram, torch.eye(dim), rtol=0, atol=TOLERANCES["exact"])


@pytest.mark.parametrize("triple", [(1, 1, 1), (2, 3, 4), (16, 16, 16), (16, 9, 20), (20, 20, 19)])
def test_is_invariant_under_rotations(triple: tuple[int, int, int]) -> None:
    w = wigner_3j(*triple)
    D1, D2, D3 = (wigner_D(l, rand_matrix()) for l in triple)  # three rotations: not invariant
    assert (torch.einsum("abc,ia,jb,kc->ijk", w, D1, D2, D3) - w).abs().max() > 1e-3
    R = rand_matrix()
    D1, D2, D3 = (wigner_D(l, R) for l in triple)
    rotated = torch.einsum("abc,ia,jb,kc->ijk", w, D1, D2, D3)
    torch.testing.assert_close(rotated, w, rtol=0, atol=TOLERANCES["equivariance"])


def test_exchange_of_two_degrees_multiplies_by_the_parity_of_their_sum() -> None:
    assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=TOLERANCES["exact"])
    for triple in triples(5):
        w, sign = wigner_3j(*triple), (-1) ** sum(triple)
        l1, l2, l3 = triple
        assert_close(wigner_3j(l2, l1, l3).transpose(0, 1), sign * w)
        assert_close(wigner_3j(l1, l3, l2).transpose(1, 2), sign * w)


def test_a_changed_result_does_not_change_the_next_one() -> None:
    expected = wigner_3j(2, 1, 1).clone()
    wigner_3j(2, 1, 1).zero_()
    assert torch.equal(wigner_3j(2, 1, 1), expected)


def test_refuses_negative_degrees() -> None:
    with pytest.raises(ValueError, match=r"degrees >= 0, got \(l1, l2, l3\) = \(1, -1, 0\)"):
        wigner_3j(1, -1, 0)


@pytest.mark.parametrize("triple", [(1, 1, 3), (3, 1, 1), (0, 2, 1)])
def test_refuses_degrees_that_violate_the_triangle_rule(triple: tuple[int, int, int]) -> None:
    l1, l2, _ = triple
    with pytest.raises(ValueError, match=f"choose l3 from {abs(l1 - l2)} to {l1 + l2}"):
        wigner_3j(*triple)
