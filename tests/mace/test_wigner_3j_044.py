"""The 3j signs of e3nn 0.4.4, on which mace-torch's weights rest."""

from __future__ import annotations

import itertools

import pytest
import torch

from eqtp.so3 import wigner_3j

pytest.importorskip("mace")

TOLERANCES = {"table": 1e-12}  # e3nn 0.4.4's table comes from an eigenvector; 1e-15 measured

# Triples whose sign differs, up to permutations: nine in all for l <= 4, and all of odd sum.
FLIPPED_TO_4 = {(1, 2, 2), (1, 3, 3), (1, 4, 4)}
FLIPPED_TO_6 = FLIPPED_TO_4 | {
    *((1, 5, 5), (1, 6, 6), (3, 4, 6), (4, 4, 5), (4, 5, 6), (5, 5, 5), (5, 6, 6)),
}


@pytest.mark.mace
def test_only_the_known_signs_differ_from_e3nn_044() -> None:
    import eqtp.irreps  # noqa: F401  (lets e3nn 0.4.4 load its table)

    e3nn = pytest.importorskip("e3nn")
    if not e3nn.__version__.startswith("0.4."):
        pytest.skip("needs e3nn 0.4")
    flipped = set()
    for triple in itertools.product(range(7), repeat=3):
        if 2 * max(triple) > sum(triple):
            continue
        ours, theirs = wigner_3j(*triple), e3nn.o3.wigner_3j(*triple, dtype=torch.float64)
        sign = torch.sign((ours * theirs).sum())
        torch.testing.assert_close(ours, sign * theirs, rtol=0, atol=TOLERANCES["table"])
        if sign < 0:
            flipped.add(tuple(sorted(triple)))
    assert {t for t in flipped if max(t) <= 4} == FLIPPED_TO_4
    assert flipped == FLIPPED_TO_6
