"""The description of a symmetric contraction: which irreps, which couplings, which weight order.

Framework-free in its fields and immutable; modules, kernels and reports read the same description.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from eqtp.irreps import Irreps
from eqtp.problem import parse_irreps
from eqtp.so3.symmetric_coupling import SymmetricCoupling, symmetric_coupling

__all__ = ["SymmetricContractionProblem"]


@dataclass(frozen=True)
class SymmetricContractionProblem:
    """Everything that defines a symmetric contraction; equal problems are equal products.

    The paths, and with them the weights [num_elements, num_paths, num_channels], are ordered by
    block of irreps_out, then degree 1 ... correlation, then as in `symmetric_coupling`.

    Attributes:
        irreps_in: Irreps of x, all multiplicities equal.
        irreps_out: Irreps of the result, with the same multiplicity.
        correlation: Highest degree of the polynomials.

    Example:
        >>> problem = SymmetricContractionProblem.from_irreps("8x0e+8x1o+8x2e+8x3o", "8x0e+8x1o", 3)
        >>> problem.num_channels, problem.num_paths
        (8, 29)
    """

    irreps_in: Irreps
    irreps_out: Irreps
    correlation: int

    @classmethod
    def from_irreps(
        cls, irreps_in: Irreps | str, irreps_out: Irreps | str, correlation: int
    ) -> SymmetricContractionProblem:
        """Checks and builds a description.

        Raises:
            ValueError: Multiplicities differ, irreps are empty, or correlation is below 1.
        """
        problem = cls(parse_irreps(irreps_in), parse_irreps(irreps_out), correlation)
        if isinstance(correlation, bool) or not isinstance(correlation, int) or correlation < 1:
            raise ValueError(f"correlation must be an integer of at least 1, got {correlation!r}")
        for name, irreps in (("irreps_in", problem.irreps_in), ("irreps_out", problem.irreps_out)):
            if irreps.dim == 0:
                raise ValueError(f"{name} must have at least one block, got '{irreps}'")
        channels = problem.num_channels
        for name, irreps in (("irreps_in", problem.irreps_in), ("irreps_out", problem.irreps_out)):
            if any(mul != channels for mul, _ in irreps):
                raise ValueError(
                    f"{name} must have the multiplicity {channels} of the first block of irreps_in "
                    f"in every block, got '{irreps}'; use a Linear before it to change "
                    "multiplicities"
                )
        return problem

    @cached_property
    def text(self) -> str:
        """The problem as a string; `of_text` is the inverse."""
        return f"{self.irreps_in}|{self.irreps_out}|{self.correlation}"

    @staticmethod
    @lru_cache(maxsize=1024)
    def of_text(text: str) -> SymmetricContractionProblem:
        """The problem of a `text`; the same object for the same text."""
        irreps_in, irreps_out, correlation = text.split("|")
        return SymmetricContractionProblem(Irreps(irreps_in), Irreps(irreps_out), int(correlation))

    @property
    def num_channels(self) -> int:
        """The multiplicity C that all blocks share."""
        return int(self.irreps_in[0].mul)

    @cached_property
    def dim_in(self) -> int:
        """Number of components of x per channel."""
        return int(self.irreps_in.dim) // self.num_channels

    @cached_property
    def dim_out(self) -> int:
        """Number of components of the result per channel."""
        return int(self.irreps_out.dim) // self.num_channels

    @cached_property
    def num_paths(self) -> int:
        """Number of paths of all blocks and degrees."""
        return sum(coupling.num_paths for _, coupling in self.couplings())

    @property
    def num_weights(self) -> int:
        """Number of weights of an element and a channel: one per path."""
        return self.num_paths

    def couplings(self) -> Iterator[tuple[slice, SymmetricCoupling]]:
        """The couplings in the order of their weights.

        Yields:
            (where the block's components are among the dim_out of the result, its coupling of one
            degree).
        """
        start = 0
        for _, ir in self.irreps_out:
            for degree in range(1, self.correlation + 1):
                yield slice(start, start + ir.dim), symmetric_coupling(self.irreps_in, ir, degree)
            start += ir.dim
