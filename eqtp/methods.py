"""The methods of a tensor product: which paths each one has, and by what factor of w3j.

Every equivariant bilinear map of one path is a multiple of the Wigner 3j tensor (Frobenius norm
1), so a method is `factor(l1, l2, l3) * w3j` on the paths of its mask. Weights are stored in w3j
units: the same weights mean the same with every method that has the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Method", "WeightRank", "get_method"]

WeightRank = Literal["full", "separable"]

_FAMILIES = {
    "gaunt": "Gaunt",
    "gaunt_full": "Gaunt",
    "matrix": "matrix product",
    "so2": "SO(2)",
}


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

    def has_path(self, l1: int, l2: int, l3: int) -> bool:
        """Whether the method can compute the path: for "cg" every triangle."""
        return abs(l1 - l2) <= l3 <= l1 + l2

    def factor(self, l1: int, l2: int, l3: int) -> float:
        """What the method's constants are in units of w3j: 1 for "cg".

        Raises:
            ValueError: The method does not have the path.
        """
        if not self.has_path(l1, l2, l3):
            raise ValueError(f"method {self.name!r} has no path ({l1}, {l2}, {l3})")
        return 1.0


_CG = Method("cg", "full", "Clebsch-Gordan: w3j itself, every path with weights of its own")


def get_method(name: str) -> Method:
    """A method by its name.

    Raises:
        ValueError: There is no such method.
        NotImplementedError: This version does not have the method yet.

    Example:
        >>> get_method("cg").factor(1, 1, 2)
        1.0
    """
    if name == _CG.name:
        return _CG
    if name in _FAMILIES:
        raise NotImplementedError(
            f"method={name!r} comes with the {_FAMILIES[name]} family; use method='cg'"
        )
    raise ValueError(f"method must be one of {(_CG.name, *_FAMILIES)}, got {name!r}")
