"""The description of a product of functions on the sphere."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from eqtp.compiling import constant_property
from eqtp.methods import get_method
from eqtp.so3 import wigner_3j

__all__ = ["SphereProductProblem"]


@dataclass(frozen=True)
class SphereProductProblem:
    """A bilinear product of functions f, g on the sphere, projected onto harmonics.

    Functions are sums of "component" harmonics of some degrees; every degree has one block of
    2l+1 components, blocks stand in the order of the degrees.

    Attributes:
        degrees1: Degrees of f, ascending.
        degrees2: Degrees of g, ascending.
        degrees3: Degrees of the result, ascending.
        odd: False for f g, which couples degrees of even sum; True for the surface curl
            r . (grad f x grad g), which couples those of odd sum.

    Raises:
        ValueError: A tuple of degrees is empty, not ascending, or has a negative degree.

    Example:
        >>> problem = SphereProductProblem((0, 1, 2), (0, 1, 2), (0, 1, 2))
        >>> problem.dims, problem.degree
        ((9, 9, 9), 6)
    """

    degrees1: tuple[int, ...]
    degrees2: tuple[int, ...]
    degrees3: tuple[int, ...]
    odd: bool = False

    def __post_init__(self) -> None:
        for name, degrees in zip(("degrees1", "degrees2", "degrees3"), self.degrees, strict=True):
            ascending = all(a < b for a, b in itertools.pairwise(degrees))
            if not degrees or not ascending or degrees[0] < 0:
                raise ValueError(
                    f"{name} must be ascending degrees >= 0, at least one, got {degrees}"
                )

    @property
    def degrees(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Degrees of f, of g and of the result."""
        return self.degrees1, self.degrees2, self.degrees3

    @constant_property
    def dims(self) -> tuple[int, int, int]:
        """Components of f, of g and of the result."""
        d1, d2, d3 = (sum(2 * degree + 1 for degree in degrees) for degrees in self.degrees)
        return d1, d2, d3

    @cached_property
    def degree(self) -> int:
        """Degree to which a quadrature must be exact: a bracket loses one degree."""
        return max(0, sum(degrees[-1] for degrees in self.degrees) - self.odd)

    @constant_property
    @torch.inference_mode(False)  # the kept tensors must serve later calls that record gradients
    def blocks(
        self,
    ) -> tuple[Int64[Tensor, " dim1"], Int64[Tensor, " dim2"], Int64[Tensor, " dim3"]]:
        """Number of the degree of every component."""
        first, second, third = (
            torch.repeat_interleave(torch.tensor([2 * degree + 1 for degree in degrees]))
            for degrees in self.degrees
        )
        return first, second, third

    @cached_property
    def text(self) -> str:
        """The problem as a string; `of_text` is the inverse."""
        return json.dumps([*self.degrees, self.odd])

    @staticmethod
    @lru_cache(maxsize=1024)
    def of_text(text: str) -> SphereProductProblem:
        """The problem of a `text`; the same object for the same text."""
        degrees1, degrees2, degrees3, odd = json.loads(text)
        return SphereProductProblem(tuple(degrees1), tuple(degrees2), tuple(degrees3), odd)

    @constant_property
    @torch.inference_mode(False)
    def constants(self) -> Float64[Tensor, "dim1 dim2 dim3"]:
        """``factor * w3j`` of every path: the mean over the sphere of the product times Y3."""
        method = get_method("gaunt_full")
        constants = torch.zeros(self.dims, dtype=torch.float64)
        spans = [_spans(degrees) for degrees in self.degrees]
        for (l1, at1), (l2, at2), (l3, at3) in itertools.product(*spans):
            if (l1 + l2 + l3) % 2 == self.odd and method.has_path(l1, l2, l3):
                constants[at1, at2, at3] = method.factor(l1, l2, l3) * wigner_3j(l1, l2, l3)
        return constants


def _spans(degrees: tuple[int, ...]) -> list[tuple[int, slice]]:
    """Degrees and where their components are."""
    ends = list(itertools.accumulate((2 * degree + 1 for degree in degrees), initial=0))
    return [(degree, slice(*ends[i : i + 2])) for i, degree in enumerate(degrees)]
