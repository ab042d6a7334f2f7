"""Masks and factors of the methods."""

from __future__ import annotations

import pytest

from eqtp.methods import get_method


def test_cg_has_every_triangle_with_factor_one() -> None:
    method = get_method("cg")
    assert method.weight_rank == "full"
    for l1 in range(4):
        for l2 in range(4):
            for l3 in range(8):
                inside = abs(l1 - l2) <= l3 <= l1 + l2
                assert method.has_path(l1, l2, l3) == inside
                if inside:
                    assert method.factor(l1, l2, l3) == 1.0
    with pytest.raises(ValueError, match=r"method 'cg' has no path \(1, 1, 3\)"):
        method.factor(1, 1, 3)


@pytest.mark.parametrize("name", ["gaunt", "gaunt_full", "matrix", "so2"])
def test_methods_to_come_say_so(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"method='{name}' comes with the .* family"):
        get_method(name)


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="method must be one of"):
        get_method("fast")
