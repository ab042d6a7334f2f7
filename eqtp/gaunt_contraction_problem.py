"""The description of a many-body Gaunt product: irreps, correlation, form, weight order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

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

        f_k(r) = sum_b u_kb sum_m x_bm Y_lm(r)            u_k: one weight per block of irreps_in
        B_1 = f_1,   B_k = P_k(f_k * V_k B_k-1)           k = 2 ... correlation
        out_L = sum_k w_k n_k(L) P_L(B_k)                 w: one per block of irreps_out and k

    with Y component-normalised, P_L the parts of degree L, and n_k(L) the constants `norm`. The two
    forms differ in what happens between the factors:

    * flat: nothing. f_k = f_1, P_k = 1 and V_k = 1, so that B_k = f^k exactly.
    * iterated: P_k keeps the degrees up to `limit(k)`; from the third factor on, f_k has weights
      u_k of its own and V_k multiplies degree J of B_k-1 by the weight v_kJ. With equal u, v = 1
      and all degrees kept this is the flat form.

    Weights [num_elements, num_weights, num_channels] are ordered u_1; for k = 3 ... correlation of
    the iterated form u_k and v_k (ascending J); w (block of irreps_out, then k).

    What the forms span, over all weights, of the symmetric couplings of degree k that
    `SymmetricContraction` weighs one by one (irreps_in 0e+1o+2e+3o, results 0e, 1o, 2e):

        k    all couplings    iterated       flat
        2    4, 3, 5          4, 3, 5        4, 3, 5
        3    8, 12, 14        8, 12, 14      8, 9, 9
        4    23, 31, 46       23, 31, 46     17, 15, 18

    Spanning is not all: the coefficients of the couplings are products of u, v and w, not
    independent numbers. For a result 0e at correlation 3 an element and channel have 7 weights in
    the flat form and 15 in the iterated one, where the couplings have 13.

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
                    f"on the sphere, got '{irreps}'; use Clebsch-Gordan products, 'cg'"
                )
        return cls(general.irreps_in, general.irreps_out, correlation, bool(iterated))

    @cached_property
    def text(self) -> str:
        """The problem as a string; `of_text` is the inverse."""
        return f"{self.irreps_in}|{self.irreps_out}|{self.correlation}|{int(self.iterated)}"

    @staticmethod
    @lru_cache(maxsize=1024)
    def of_text(text: str) -> GauntContractionProblem:
        """The problem of a `text`; the same object for the same text."""
        irreps_in, irreps_out, *numbers = text.split("|")
        correlation, iterated = map(int, numbers)
        return GauntContractionProblem(
            Irreps(irreps_in), Irreps(irreps_out), correlation, bool(iterated)
        )

    @property
    def num_channels(self) -> int:
        """The multiplicity C that all blocks share."""
        return int(self.irreps_in[0].mul)

    @cached_property
    def degrees_in(self) -> tuple[int, ...]:
        """Degree of every block of irreps_in."""
        return tuple(int(ir.l) for _, ir in self.irreps_in)

    @cached_property
    def degrees_out(self) -> tuple[int, ...]:
        """Degree of every block of irreps_out."""
        return tuple(int(ir.l) for _, ir in self.irreps_out)

    @cached_property
    def dim_in(self) -> int:
        """Number of components of x per channel."""
        return sum(2 * degree + 1 for degree in self.degrees_in)

    @cached_property
    def dim_out(self) -> int:
        """Number of components of the result per channel."""
        return sum(2 * degree + 1 for degree in self.degrees_out)

    def limit(self, power: int) -> int:
        """Highest degree of B_power that bears on the result.

        The iterated form keeps intermediates up to the highest degree of irreps_in and irreps_out:
        it loses no coupling by that. The flat form needs what later factors can bring down again.
        """
        lmax, lmax_out = max(self.degrees_in), max(self.degrees_out)
        if power == self.correlation:
            return lmax_out
        rest = 0 if self.iterated else (self.correlation - power) * lmax
        return min(power * lmax, max(lmax if self.iterated else 0, lmax_out + rest))

    @cached_property
    def num_weights(self) -> int:
        """Number of weights of an element and a channel."""
        return self._start(self.correlation + 1) + len(self.degrees_out) * self.correlation

    def input_weights(self, power: int) -> slice:
        """Where the weights u of the factor f_power are, in the order of irreps_in."""
        start = self._start(power) if self.has_step(power) else 0
        return slice(start, start + len(self.degrees_in))

    def step_weights(self, power: int) -> slice:
        """Where the weights v of B_power-1 are, degrees 0 ... limit(power - 1); for `has_step`."""
        start = self.input_weights(power).stop
        return slice(start, start + self.limit(power - 1) + 1)

    def power_weights(self, block: int) -> slice:
        """Where the weights w of a block of irreps_out are, powers 1 ... correlation."""
        start = self._start(self.correlation + 1) + block * self.correlation
        return slice(start, start + self.correlation)

    def has_step(self, power: int) -> bool:
        """Whether the product with f_power has weights u and v of its own."""
        return self.iterated and power >= 3

    def _start(self, power: int) -> int:
        """Number of weights of the factors before f_power."""
        steps = range(3, power) if self.iterated else ()
        blocks = len(self.degrees_in)
        return blocks + sum(blocks + self.limit(k - 1) + 1 for k in steps)

    @cached_property
    def grid_degree(self) -> int:
        """Degree to which a grid must be exact for every product and projection."""
        lmax, lmax_out = max(self.degrees_in), max(self.degrees_out)
        if not self.iterated:
            return self.correlation * lmax + lmax_out
        pairs = [
            self.limit(power - 1) + max(self.limit(power), lmax_out)
            for power in range(2, self.correlation + 1)
        ]
        return lmax + max([lmax_out, *pairs])

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
