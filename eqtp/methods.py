"""The methods of a tensor product: which paths each one has, and by what factor of w3j.

Every equivariant bilinear map of one path (l1, l2, l3) is a multiple of the Wigner 3j tensor
(Frobenius norm 1), so a method is `factor(l1, l2, l3) * w3j` on the paths of its mask: the
triangles where the factor is not zero. Weights are stored in w3j units: the same weights mean the
same with every method that has the path.

    method      what it computes                                  magnitude of the factor
    cg          w3j itself                                        1
    gaunt       products of functions on the sphere               sqrt(d1 d2 d3) 3j(0, 0, 0)
    gaunt_full  the same, and their surface curl (odd sums)       sqrt(d1 d2 d3 s1 s2) 3j(1, -1, 0)
    matrix      products of (2j+1) x (2j+1) matrices              sqrt(d1 d2 d3) 6j(l1 l2 l3; j j j)
    so2         the edge-aligned form of cg with harmonics        1

with d = 2 l + 1, s = l (l + 1) and functions on the sphere in component-normalised harmonics. The
signs follow w3j's own and are computed, never written down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch

from eqtp.so3.clebsch_gordan import wigner_3j

__all__ = ["METHODS", "Method", "WeightRank", "get_method"]

WeightRank = Literal["full", "separable"]
Factor = Callable[[int, int, int], float]

METHODS = ("cg", "gaunt", "gaunt_full", "matrix", "so2")
_ZERO = 1e-10  # the factors of l <= 16 that are not zero are larger than 1e-3


@dataclass(frozen=True)
class Method:
    """One way to compute tensor products.

    Attributes:
        name: Name as given to `TensorProduct(method=...)`.
        weight_rank: "full" where every path has its own weights, "separable" where they are
            products a[l1] b[l2] c[l3].
        summary: One line for `explain()`.
    """

    name: str
    weight_rank: WeightRank
    summary: str
    _factor: Factor

    def has_path(self, l1: int, l2: int, l3: int) -> bool:
        """Whether the method can compute the path."""
        return abs(l1 - l2) <= l3 <= l1 + l2 and abs(self._factor(l1, l2, l3)) > _ZERO

    def factor(self, l1: int, l2: int, l3: int) -> float:
        """What the method's constants are in units of w3j.

        Raises:
            ValueError: The method does not have the path.
        """
        if not self.has_path(l1, l2, l3):
            raise ValueError(
                f"method {self.name!r} has no path ({l1}, {l2}, {l3}): use method='cg'"
            )
        return self._factor(l1, l2, l3)


def get_method(name: str, max_degree: int = 2) -> Method:
    """A method by its name.

    Args:
        name: One of `METHODS`.
        max_degree: Highest degree of any operand or result; "matrix" takes the smallest matrices
            (2j+1) x (2j+1), j integer, that hold it.

    Raises:
        ValueError: There is no such method.

    Example:
        >>> get_method("cg").factor(1, 1, 2)
        1.0
        >>> get_method("gaunt").has_path(1, 1, 1)
        False
    """
    if name == "cg":
        return Method(
            name, "full", "Clebsch-Gordan: w3j itself, every path with weights of its own", _one
        )
    if name == "gaunt":
        return Method(
            name, "separable", "products of functions on the sphere: paths of even sum", _gaunt
        )
    if name == "gaunt_full":
        return Method(
            name,
            "separable",
            "products on the sphere (even sums) and their surface curl (odd sums)",
            _gaunt_full,
        )
    if name == "matrix":
        j = max(1, math.ceil(max_degree / 2))
        size = 2 * j + 1
        return Method(
            name, "separable", f"products of {size} x {size} matrices", partial(_matrix, j)
        )
    if name == "so2":
        return Method(
            name, "full", "cg with the harmonics of edge vectors, in edge-aligned frames", _one
        )
    raise ValueError(f"method must be one of {METHODS}, got {name!r}")


def _one(l1: int, l2: int, l3: int) -> float:
    return 1.0


@cache
def _gaunt(l1: int, l2: int, l3: int) -> float:
    """The entry of the orders (0, 0, 0) is the 3j symbol, with the sign of w3j."""
    return _root(l1, l2, l3) * wigner_3j(l1, l2, l3)[l1, l2, l3].item()


@cache
def _gaunt_full(l1: int, l2: int, l3: int) -> float:
    """For odd sums the entry of the orders (1, -1, 0) is the symbol 3j(1, -1, 0).

    The integral of the triple product r . (grad Y1 x grad Y2) Y3 is a positive multiple of
    3j(1, -1, 0) times the 3j symbol of its orders: spin-weighted harmonics.
    """
    if (l1 + l2 + l3) % 2 == 0:
        return _gaunt(l1, l2, l3)
    if min(l1, l2, l3) == 0:
        return 0.0
    curl = math.sqrt(l1 * (l1 + 1) * l2 * (l2 + 1))
    return curl * _root(l1, l2, l3) * wigner_3j(l1, l2, l3)[l1 + 1, l2 - 1, l3].item()


@cache
def _matrix(j: int, l1: int, l2: int, l3: int) -> float:
    """The product of the matrices sqrt(d) w3j(l, j, j), in units of w3j."""
    if max(l1, l2, l3) > 2 * j:
        return 0.0
    product = torch.einsum(
        "iab,jbc,kac->ijk", *(wigner_3j(degree, j, j) for degree in (l1, l2, l3))
    )
    return _root(l1, l2, l3) * (product * wigner_3j(l1, l2, l3)).sum().item()


def _root(l1: int, l2: int, l3: int) -> float:
    return math.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1))
