"""The description of a many-body Gaunt product: irreps, correlation, form, weight order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eqtp.irreps import Irreps
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["GauntContractionProblem"]

# A second moment that vanishes comes out below 1e-13 of the largest term of its sum, one that does
# not above 1e-4 (lmax <= 6, correlation <= 5, every degree of the result).
_VANISHING = 1e-9


@dataclass(frozen=True)
class GauntContractionProblem:
    """Powers of a function on the sphere, with weights for every element and channel.

        f(r) = sum_b u_b sum_m x_bm Y_lm(r)                     u: one weight per block of irreps_in
        B_1 = f,   B_k = P_k(f * V_k-1 B_k-1)                   k = 2 ... correlation
        out_L = sum_k w_k n_k(L) P_L(B_k)                       w: one per block of irreps_out and k

    with Y component-normalised, P_L the parts of degree L, and n_k(L) the constants `norm`. The two
    forms differ in what happens between the factors:

    * flat: nothing, P_k = 1 and V_k = 1, so that B_k = f^k exactly.
    * iterated: P_k keeps the degrees up to `cut(k)`, and V_k multiplies degree J by the weight
      v_k,J (k = 2 ... correlation - 1). With v = 1 and no cut this is the flat form.

    Weights [num_elements, num_weights, num_channels] are ordered u, v (k, then J), w (block of
    irreps_out, then k).

    What the forms span, over all weights u and v, of the symmetric couplings that
    `SymmetricContraction` weighs one by one (inputs 0e+1o+2e+3o; results 0e, 1o, 2e):

        correlation   all couplings   iterated        flat
        2             4, 3, 5         4, 3, 5         4, 3, 5
        3             8, 12, 14       8, 12, 14       8, 9, 9
        4             23, 31, 46      23, 31, 46      17, 15, 21

    Spanning is not all: the weights of different couplings are products of u, v and w, not
    independent numbers. Of one channel the flat form has 4 + correlation weights per element and
    result where the couplings have 13 (0e) or 16 (1o).

    Sources: Luo et al., ICLR 2024, arXiv:2401.10216 (many-body Gaunt products); Xie et al.,
    arXiv:2506.13523 (The Price of Freedom) on what grid products lose.

    Attributes:
        irreps_in: Irreps of x, all of natural parity (-1)^l and one multiplicity.
        irreps_out: Irreps of the result, likewise.
        correlation: Highest power.
        iterated: Whether intermediates are projected and weighted.

    Example:
        >>> problem = GauntContractionProblem.from_irreps("8x0e+8x1o+8x2e", "8x0e+8x1o", 3)
        >>> problem.num_weights, problem.grid_degree
        (9, 7)
    """

    irreps_in: Irreps
    irreps_out: Irreps
    correlation: int
    iterated: bool

    @classmethod
    def from_irreps(
        cls,
        irreps_in: Irreps | str,
        irreps_out: Irreps | str,
        correlation: int,
        iterated: bool = False,
    ) -> GauntContractionProblem:
        """Checks and builds a description.

        Raises:
            ValueError: Multiplicities differ, an irrep is not of natural parity, irreps are empty,
                or correlation is below 1.
        """
        general = SymmetricContractionProblem.from_irreps(irreps_in, irreps_out, correlation)
        for name in ("irreps_in", "irreps_out"):
            irreps = getattr(general, name)
            if any(ir.p != (-1) ** ir.l for _, ir in irreps):
                raise ValueError(
                    f"{name} must be of natural parity (0e, 1o, 2e, ...) for products of functions "
                    f"on the sphere, got '{irreps}'; use method='cg'"
                )
        return cls(general.irreps_in, general.irreps_out, correlation, bool(iterated))

    @cached_property
    def num_channels(self) -> int:
        """The multiplicity C that all blocks share."""
        return int(self.irreps_in[0].mul)

    @cached_property
    def degrees_in(self) -> tuple[int, ...]:
        """Degree of every block of irreps_in."""
        return tuple(ir.l for _, ir in self.irreps_in)

    @cached_property
    def degrees_out(self) -> tuple[int, ...]:
        """Degree of every block of irreps_out."""
        return tuple(ir.l for _, ir in self.irreps_out)

    @cached_property
    def dim_in(self) -> int:
        """Number of components of x per channel."""
        return sum(2 * degree + 1 for degree in self.degrees_in)

    @cached_property
    def dim_out(self) -> int:
        """Number of components of the result per channel."""
        return sum(2 * degree + 1 for degree in self.degrees_out)

    def cut(self, power: int) -> int:
        """Highest degree of the intermediate B_power that the iterated form keeps.

        max(lmax of irreps_in, lmax of irreps_out), or less where no more comes about: the iterated
        form loses no coupling by it.
        """
        lmax = max(self.degrees_in)
        return min(power * lmax, max(lmax, *self.degrees_out))

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The powers k whose intermediate has weights v_k."""
        return tuple(range(2, self.correlation)) if self.iterated else ()

    @cached_property
    def num_weights(self) -> int:
        """Number of weights of an element and a channel."""
        return self.power_weights(0).start + len(self.degrees_out) * self.correlation

    def step_weights(self, power: int) -> slice:
        """Where the weights v of the intermediate B_power are, degrees 0 ... cut(power)."""
        start = len(self.degrees_in) + sum(self.cut(k) + 1 for k in self.steps if k < power)
        return slice(start, start + (self.cut(power) + 1 if power in self.steps else 0))

    def power_weights(self, block: int) -> slice:
        """Where the weights w of a block of irreps_out are, powers 1 ... correlation."""
        start = self.step_weights(self.correlation).start + block * self.correlation
        return slice(start, start + self.correlation)

    @cached_property
    def grid_degree(self) -> int:
        """Degree to which a grid must be exact for every product and projection."""
        lmax, lmax_out = max(self.degrees_in), max(self.degrees_out)
        if not self.iterated:
            return self.correlation * lmax + lmax_out
        ends = [*(self.cut(k) for k in range(1, self.correlation)), lmax_out]
        pairs = zip(ends, ends[1:], strict=False)
        return max([lmax + lmax_out, *(lmax + before + after for before, after in pairs)])

    @cached_property
    def norm(self) -> tuple[tuple[float, ...], ...]:
        """n_k(L) of every block of irreps_out and power k = 1 ... correlation.

        They make the mean square of every component of n_k(L) P_L(f^k) one where u = 1 and x is
        drawn from the standard normal distribution: f is then a Gaussian field of covariance
        c(t) = sum_b (2 l_b + 1) P_l(t), t the cosine of the angle between two points, and

            1 / n_k(L)^2 = 1/2 int_-1^1 P_L(t) E[f(r)^k f(s)^k] dt,
            E[f(r)^k f(s)^k] = sum_j j! binom(k, j)^2 ((k - j - 1)!!)^2 c(t)^j c(1)^(k - j),

        over j = k, k - 2, ... (Isserlis). Zero where P_L(f^k) vanishes identically.
        """
        legendre = np.polynomial.legendre
        lmax = max(self.degrees_in)
        series = np.zeros(lmax + 1)
        np.add.at(series, list(self.degrees_in), [2 * degree + 1 for degree in self.degrees_in])
        degree = self.correlation * lmax + max(self.degrees_out)
        nodes, weights = legendre.leggauss(degree // 2 + 1)
        covariance, variance = legendre.legval(nodes, series), float(series.sum())
        table = []
        for out in self.degrees_out:
            measure = legendre.legval(nodes, np.eye(out + 1)[out]) * weights / 2
            row = []
            for power in range(1, self.correlation + 1):
                moments = _moments(power, covariance, variance)
                moment, scale = float(measure @ moments), float(np.abs(measure) @ np.abs(moments))
                row.append(1 / math.sqrt(moment) if moment > _VANISHING * scale else 0.0)
            table.append(tuple(row))
        return tuple(table)


def _moments(power: int, covariance: np.ndarray, variance: float) -> np.ndarray:
    """E[a^power b^power] of Gaussian a, b of one variance and given covariances."""
    total = np.zeros_like(covariance)
    for shared in range(power, -1, -2):
        pairings = math.prod(range(1, power - shared, 2))  # (power - shared - 1)!!
        count = math.factorial(shared) * math.comb(power, shared) ** 2 * pairings**2
        total += count * covariance**shared * variance ** (power - shared)
    return total
