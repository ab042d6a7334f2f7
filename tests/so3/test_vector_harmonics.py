"""Products of vector spherical harmonics: an independent check of the paths of odd sum.

Pointwise cross products of vector fields (VSTP; Xie et al., arXiv 2602.21466), where eqtp's own odd
paths are surface curls of scalar functions. With

    Y_{j,l}[m, a] = sqrt(2j+1) sum_n w3j(l, 1, j)[n, a, m] Y_l[n],    l = j-1, j, j+1

the mean over the sphere of (Y_{j1,l1} x Y_{j2,l2}) . Y_{j3,l3} is c w3j(j1, j2, j3) with

    c = sqrt(6) prod sqrt((2j+1)(2l+1)) 9j{l1 1 j1; l2 1 j2; l3 1 j3} 3j(l1, l2, l3; 0, 0, 0)

in component-normalised harmonics; its sign is that of the real w3j which make up the 9j here.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import torch
from torch import Tensor

from eqtp.kernels.gaunt_grid import SphereProductProblem, sphere_product
from eqtp.methods import get_method
from eqtp.so3 import spherical_harmonics, wigner_3j
from eqtp.so3.sphere_grid import sphere_grid

TOLERANCES = {
    "blocks": 1e-12,  # the bar, of blocks as they are and divided by factors; 2e-15 measured
    "zero": 1e-3,  # factors are above 0.36, or zero by selection rules
}
JMAX = 3
FIELDS = [(j, l) for j in range(JMAX + 1) for l in (j - 1, j, j + 1) if abs(l - 1) <= j and l >= 0]
EPSILON = torch.zeros(3, 3, 3, dtype=torch.float64)
EPSILON[[0, 1, 2], [1, 2, 0], [2, 0, 1]] = 1.0
EPSILON[[0, 2, 1], [2, 1, 0], [1, 0, 2]] = -1.0

Path = tuple[int, int, int]


def root(*degrees: int) -> float:
    return math.sqrt(math.prod(2 * degree + 1 for degree in degrees))


def field(j: int, l: int, harmonics: Tensor) -> Tensor:
    """Y_{j,l} on the points, [points, 3, 2j+1]."""
    scalar = harmonics[:, l * l : (l + 1) ** 2]
    return root(j) * torch.einsum("nam,pn->pam", wigner_3j(l, 1, j), scalar)


@cache
def blocks() -> dict[tuple[Path, Path], Tensor]:
    """The projected cross product of every three fields, by (j1, j2, j3) and (l1, l2, l3)."""
    grid = sphere_grid(3 * (JMAX + 1))
    harmonics = spherical_harmonics(JMAX + 1, grid.points)
    mean = grid.weights / (4 * math.pi)
    fields = {name: field(*name, harmonics) for name in FIELDS}
    result = {}
    for first, second in itertools.product(FIELDS, repeat=2):
        x, y = torch.broadcast_tensors(fields[first][..., None], fields[second][:, :, None])
        cross = torch.linalg.cross(x, y, dim=1)
        for third in FIELDS:
            block = torch.einsum("p,paij,pak->ijk", mean, cross, fields[third])
            j, l = zip(first, second, third, strict=True)
            result[j, l] = block
    return result


def triangle(a: int, b: int, c: int) -> bool:
    return abs(a - b) <= c <= a + b


def nine_j(j: Path, l: Path) -> float:
    """9j{l1 1 j1; l2 1 j2; l3 1 j3}: six w3j, of the rows and of the columns."""
    (j1, j2, j3), (l1, l2, l3) = j, l
    partial = torch.einsum("abc,adg->bcdg", wigner_3j(l1, l2, l3), wigner_3j(l1, 1, j1))
    partial = torch.einsum("bcdg,beh->cdgeh", partial, wigner_3j(l2, 1, j2))
    partial = torch.einsum("cdgeh,def->cgfh", partial, wigner_3j(1, 1, 1))
    partial = torch.einsum("cgfh,cfi->ghi", partial, wigner_3j(l3, 1, j3))
    return float((partial * wigner_3j(j1, j2, j3)).sum())


def factor(j: Path, l: Path) -> float:
    """c of the formula above; 0 outside the triangles."""
    if not (triangle(*j) and triangle(*l)):
        return 0.0
    sign = float((EPSILON * wigner_3j(1, 1, 1)).sum().sign())
    at_zero = wigner_3j(*l)[l].item()  # orders 0, 0, 0
    return sign * math.sqrt(6) * root(*j, *l) * nine_j(j, l) * at_zero


def covered() -> dict[Path, list[Path]]:
    """The paths j1, j2, j3 that some fields have, and the degrees of these fields."""
    result: dict[Path, list[Path]] = {}
    for j, l in blocks():
        if abs(factor(j, l)) > TOLERANCES["zero"]:
            result.setdefault(j, []).append(l)
    return result


def test_nine_j() -> None:
    """With a zero it is a third of the symbol 6j{1 1 1; 1 1 1} = 1/6; equal rows of odd sum: 0."""
    assert math.isclose(abs(nine_j((1, 1, 0), (1, 1, 1))), 1 / 18)
    assert abs(nine_j((1, 1, 1), (1, 1, 1))) < TOLERANCES["blocks"]


def test_blocks_are_multiples_of_w3j_by_the_generalised_gaunt_formula() -> None:
    for (j, l), block in blocks().items():
        exact = factor(j, l) * wigner_3j(*j) if triangle(*j) else torch.zeros_like(block)
        torch.testing.assert_close(block, exact, rtol=0, atol=TOLERANCES["blocks"])


def test_all_odd_paths_are_covered() -> None:
    """And all even ones but (0, 0, 0): the only field of j = 0 has l = 1, and 1 + 1 + 1 is odd."""
    paths = {path for path in itertools.product(range(JMAX + 1), repeat=3) if triangle(*path)}
    odd = {path for path in paths if sum(path) % 2}
    assert len(odd) == 11
    assert set(covered()) == paths - {(0, 0, 0)}


def test_curls_are_proportional_to_cross_products() -> None:
    """The odd products of eqtp on its own grid, path by path, and the fields': the same tensors."""
    degrees = tuple(range(JMAX + 1))
    problem = SphereProductProblem(degrees, degrees, degrees, odd=True)
    dim = (JMAX + 1) ** 2
    eye = torch.eye(dim)[..., None]
    out = sphere_product(eye.repeat_interleave(dim, 0), eye.repeat(dim, 1, 1), problem)
    curl = out.view(dim, dim, dim)
    method = get_method("gaunt_full")
    checked = set()
    for j, fields in covered().items():
        if sum(j) % 2 == 0:
            continue
        at1, at2, at3 = (slice(k * k, (k + 1) ** 2) for k in j)
        ours = curl[at1, at2, at3] / method.factor(*j)
        for l in fields:
            theirs = blocks()[j, l] / factor(j, l)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCES["blocks"])
        checked.add(j)
    assert len(checked) == 11
