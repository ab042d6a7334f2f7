"""Dimension counts of tensor products, by numerical rank."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import eqtp
from eqtp import Irreps, TensorProduct
from eqtp.methods import get_method
from eqtp.so3 import expressivity, interactability

CG = {1: 6, 2: 19, 3: 44, 4: 85}
ODD = {1: 1, 2: 5, 3: 9, 4: 13}
EVEN_PATHS = {1: 5, 2: 14, 3: 30, 4: 55}


def product(
    lmax: int, method: str, *, highest: int | None = None, odd: bool | None = None, **options: Any
) -> TensorProduct:
    """One channel, degrees to lmax into degrees to 2 lmax; all paths, or those of even or odd sum.

    Degrees have the parity e, so that only rotations restrict the paths.
    """
    highest = 2 * lmax if highest is None else highest
    irreps = "+".join(f"{l}e" for l in range(lmax + 1))
    result = "+".join(f"{l}e" for l in range(highest + 1))
    known = get_method(method, highest) if method == "matrix" else get_method(method)
    instructions = [
        (l1, l2, l3, "uuu", True)
        for l1, l2 in itertools.product(range(lmax + 1), repeat=2)
        for l3 in range(abs(l1 - l2), min(l1 + l2, highest) + 1)
        if known.has_path(l1, l2, l3) and odd in (None, (l1 + l2 + l3) % 2 == 1)
    ]
    return TensorProduct(irreps, irreps, result, instructions, method=method, **options)


@pytest.mark.parametrize("lmax", CG)
def test_counts(lmax: int) -> None:
    assert expressivity(product(lmax, "cg")) == CG[lmax]
    assert expressivity(product(lmax, "gaunt")) == 4 * lmax + 1
    assert expressivity(product(lmax, "gaunt_full", odd=True)) == ODD[lmax]
    assert expressivity(product(lmax, "matrix")) == 4 * lmax + 1  # 5, 9, 13, 17: separable too


@pytest.mark.parametrize("lmax", [1, 2])
def test_convolutions_in_edge_frames_have_every_triangle(lmax: int) -> None:
    """Harmonics to twice the degree of the features, and weights as free as those of "cg"."""
    degrees, filters = range(lmax + 1), range(2 * lmax + 1)
    triangles = {
        (l1, l2, l3)
        for l1, l2, l3 in itertools.product(degrees, filters, degrees)
        if abs(l1 - l2) <= l3 <= l1 + l2
    }
    sides = ("+".join(f"{l}e" for l in degrees), "+".join(f"{l}e" for l in filters))
    instructions = [(*path, "uvw", True) for path in sorted(triangles)]
    tp = TensorProduct(*sides, sides[0], instructions, method="so2")
    assert interactability(tp) == triangles
    assert expressivity(tp) == len(triangles)


@pytest.mark.parametrize(
    ("lmax", "passes"),
    [(2, 2), (3, 3), (4, 4), pytest.param(6, 6, marks=pytest.mark.slow)],
)
def test_passes_reach_all_even_paths(lmax: int, passes: int) -> None:
    """Results to lmax: as many passes as the degree, and not one fewer."""
    full = product(lmax, "cg", highest=lmax, odd=False)
    assert expressivity(full) == len(full.problem.paths)
    enough = product(lmax, "gaunt", highest=lmax, passes=passes)
    fewer = product(lmax, "gaunt", highest=lmax, passes=passes - 1)
    assert expressivity(enough) == expressivity(full) > expressivity(fewer)


def test_channels_between_linear_layers_count_like_passes() -> None:
    paths = [path[:3] for path in product(2, "gaunt", highest=2).instructions]
    irreps = "2x0e+2x1e+2x2e"
    tp = TensorProduct(
        irreps, irreps, irreps, [(*path, "uuu", False) for path in paths], method="gaunt"
    )
    assert expressivity(tp) == len(paths)


def test_interactions() -> None:
    lmax = 2
    triangles = {
        (l1, l2, l3)
        for l1, l2 in itertools.product(range(lmax + 1), repeat=2)
        for l3 in range(abs(l1 - l2), l1 + l2 + 1)
    }
    assert interactability(product(lmax, "cg")) == triangles
    even = {path for path in triangles if sum(path) % 2 == 0}
    assert interactability(product(lmax, "gaunt")) == even
    assert len(even) == EVEN_PATHS[lmax]
    curl = {path for path in triangles - even if min(path) > 0}
    assert interactability(product(lmax, "gaunt_full")) == even | curl
    assert curl == triangles - even


def test_parity_forbids() -> None:
    tp = eqtp.FullTensorProduct("0e+1o", "0e+1o")
    assert interactability(tp) == {(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1), (1, 1, 2)}
    empty = TensorProduct(Irreps("1o"), Irreps("1o"), Irreps("1o"), [])
    assert expressivity(empty) == 0
    assert interactability(empty) == frozenset()
