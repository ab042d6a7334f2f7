"""Quadrature on the sphere, exact to a degree, and harmonics on its points.

A product of functions of degrees L1, L2 whose parts up to degree L3 are wanted is integrated
against harmonics of degree L3: a rule must be exact to the degree D = L1 + L2 + L3.

    product rule    Gauss-Legendre rings y = cos(beta), D // 2 + 1 of them, times D + 1 equispaced
                    angles alpha: the smallest such rule, and transforms that separate into a
                    Legendre and a Fourier part
    Lebedev rule    fewer points (D = 9: 38, not 50), transforms are dense

A point is (sin(beta) sin(alpha), cos(beta), sin(beta) cos(alpha)): y is the polar axis. There are
no tables: everything follows from stable recursions in float64, for any degree; Lebedev's points
are scipy's.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

__all__ = [
    "GridKind",
    "GridNormalization",
    "SphereGrid",
    "analysis_matrix",
    "fourier_factors",
    "gradient_factors",
    "gradient_matrices",
    "legendre_factors",
    "polar_functions",
    "product_grid",
    "sphere_grid",
    "synthesis_matrix",
]

GridKind = Literal["auto", "product", "lebedev"]
GridNormalization = Literal["component", "integral"]

LEBEDEV_DEGREES = (*range(3, 32, 2), *range(35, 132, 6))


@dataclass(frozen=True, eq=False)
class SphereGrid:
    """Points and weights of a rule; `sphere_grid` makes them.

    Attributes:
        kind: "product" or "lebedev".
        degree: The rule integrates polynomials up to this degree exactly.
        points: Unit vectors; of a product rule ring after ring, as `shape` says.
        weights: Weights of the integral over the sphere: their sum is 4 pi.
        cos_beta: Cosine of the angle from +y, of every point.
        sin_beta: Its sine, not negative.
        alpha: The angle about y, from z towards x; 0 at a pole.
        shape: (rings, angles) of a product rule; None for a Lebedev rule.
    """

    kind: Literal["product", "lebedev"]
    degree: int
    points: Float64[Tensor, "points 3"]
    weights: Float64[Tensor, " points"]
    cos_beta: Float64[Tensor, " points"]
    sin_beta: Float64[Tensor, " points"]
    alpha: Float64[Tensor, " points"]
    shape: tuple[int, int] | None

    def __len__(self) -> int:
        return self.points.shape[0]


@functools.cache
@torch.inference_mode(False)  # the kept tensors must serve later calls that record gradients
def sphere_grid(
    degree: int,
    kind: GridKind = "auto",
    *,
    num_rings: int | None = None,
    num_angles: int | None = None,
) -> SphereGrid:
    """The smallest rule of a kind that integrates polynomials of `degree` exactly.

    Args:
        degree: Degree of exactness, D = L1 + L2 + L3 for a product of two functions.
        kind: "product", "lebedev", or "auto" for the one with fewer points.
        num_rings: Rings of a product rule; degree // 2 + 1, the fewest possible, when None.
        num_angles: Angles of a product rule; degree + 1, the fewest possible, when None.

    Raises:
        ValueError: The degree is negative, beyond the largest Lebedev rule (131) where that is
            asked for, or too few rings or angles are asked for.

    Example:
        >>> [len(sphere_grid(3 * l, "product")) for l in (1, 2, 3, 4)]
        [8, 28, 50, 91]
        >>> len(sphere_grid(9))
        38
    """
    if degree < 0:
        raise ValueError(f"degree must not be negative, got {degree}")
    if kind not in get_args(GridKind):
        raise ValueError(f"kind must be one of {get_args(GridKind)}, got {kind!r}")
    if kind == "lebedev":
        return _lebedev_grid(degree)
    smallest = degree // 2 + 1, degree + 1
    sizes = num_rings or smallest[0], num_angles or smallest[1]
    if sizes[0] < smallest[0] or sizes[1] < smallest[1]:
        raise ValueError(
            f"a product rule of degree {degree} needs at least {smallest[0]} rings and "
            f"{smallest[1]} angles, got {sizes[0]} and {sizes[1]}"
        )
    if kind == "auto" and sizes == smallest and degree <= LEBEDEV_DEGREES[-1]:
        lebedev = _lebedev_grid(degree)
        if len(lebedev) < math.prod(sizes):
            return lebedev
    return product_grid(*sizes)


def product_grid(num_rings: int, num_angles: int) -> SphereGrid:
    """Gauss-Legendre rings times equispaced angles, whatever their exactness is."""
    nodes, node_weights = np.polynomial.legendre.leggauss(num_rings)
    y = torch.from_numpy(nodes).repeat_interleave(num_angles)
    alpha = torch.arange(num_angles, dtype=torch.float64) * (2 * math.pi / num_angles)
    weights = torch.from_numpy(node_weights) * (2 * math.pi / num_angles)
    return _grid(
        "product",
        min(2 * num_rings - 1, num_angles - 1),
        y,
        ((1 - y) * (1 + y)).sqrt(),
        alpha.repeat(num_rings),
        weights.repeat_interleave(num_angles),
        (num_rings, num_angles),
    )


def _lebedev_grid(degree: int) -> SphereGrid:
    exact = next((known for known in LEBEDEV_DEGREES if known >= degree), None)
    if exact is None:
        raise ValueError(
            f"Lebedev rules are known to degree {LEBEDEV_DEGREES[-1]}, got {degree}; "
            "use kind='product'"
        )
    from scipy.integrate import lebedev_rule  # half a second, for those who need it

    vectors, weights = lebedev_rule(exact)
    x, y, z = torch.from_numpy(np.ascontiguousarray(vectors))
    sin_beta = torch.hypot(x, z)
    return _grid("lebedev", exact, y, sin_beta, torch.atan2(x, z), torch.from_numpy(weights), None)


def _grid(
    kind: Literal["product", "lebedev"],
    degree: int,
    cos_beta: Tensor,
    sin_beta: Tensor,
    alpha: Tensor,
    weights: Tensor,
    shape: tuple[int, int] | None,
) -> SphereGrid:
    points = torch.stack([sin_beta * alpha.sin(), cos_beta, sin_beta * alpha.cos()], dim=1)
    return SphereGrid(kind, degree, points, weights, cos_beta, sin_beta, alpha, shape)


def synthesis_matrix(
    grid: SphereGrid, lmax: int, normalization: GridNormalization = "component"
) -> Float64[Tensor, "points {(lmax+1)**2}"]:
    """Harmonics on the points, ``S[p, k] = Y_k(p)``: values of a function are S times its parts.

    Args:
        grid: The points.
        lmax: Highest degree of the function.
        normalization: "component" (mean square 1 over the sphere) or "integral" (integral 1).

    Example:
        >>> grid = sphere_grid(4)
        >>> eye = analysis_matrix(grid, 2) @ synthesis_matrix(grid, 2)
        >>> bool(torch.allclose(eye, torch.eye(9, dtype=torch.float64)))
        True
    """
    legendre, _ = _legendre(lmax, grid.cos_beta, grid.sin_beta)
    return _scale(normalization) * legendre * _fourier(lmax, grid.alpha)


def analysis_matrix(
    grid: SphereGrid, lmax: int, normalization: GridNormalization = "component"
) -> Float64[Tensor, "{(lmax+1)**2} points"]:
    """Projection ``A[k, p]`` onto harmonics: A times a function's values are its parts.

    Exact for functions of degree L if the grid's degree is at least L + lmax. With "component" it
    is the mean over the sphere of the function times Y_k, with "integral" the integral.
    """
    measure = grid.weights / (4 * math.pi) if normalization == "component" else grid.weights
    return synthesis_matrix(grid, lmax, normalization).T * measure


def gradient_matrices(
    grid: SphereGrid, lmax: int, normalization: GridNormalization = "component"
) -> Float64[Tensor, "2 points {(lmax+1)**2}"]:
    """Surface gradients of harmonics in the frame (e_beta, e_alpha) of each point.

    ``G[0, p, k] = d Y_k / d beta`` and ``G[1, p, k] = (1 / sin beta) d Y_k / d alpha``. The frame
    is right-handed with the outward normal, e_beta x e_alpha = r, so that the Poisson bracket
    ``r . (grad f x grad g)`` is ``f_0 g_1 - f_1 g_0``. Regular at the poles.
    """
    _, over_sine = _legendre(lmax, grid.cos_beta, grid.sin_beta)
    slope = _slopes(lmax, grid.cos_beta, grid.sin_beta, over_sine)
    along_beta = slope * _fourier(lmax, grid.alpha)
    along_alpha = over_sine * _fourier_derivative(lmax, grid.alpha)
    return _scale(normalization) * torch.stack([along_beta, along_alpha])


def polar_functions(
    lmax: int, cosine: Float64[Tensor, " points"], sine: Float64[Tensor, " points"]
) -> Float64[Tensor, "points {(lmax+1)**2}"]:
    """P_lm(beta) of "component" harmonics, P_lm = P_l-m; a negative sine continues it past a pole.

    Y_lm = P_lm(beta) cos(m alpha) for m >= 0 and P_lm(beta) sin(|m| alpha) for m < 0.
    """
    return _legendre(lmax, cosine, sine)[0]


def legendre_factors(
    grid: SphereGrid, lmax: int, normalization: GridNormalization = "component"
) -> Float64[Tensor, "rings {(lmax+1)**2}"]:
    """The first factor of a product rule: ``Y_lm(ring, angle) = P_lm(ring) F_m(angle)``.

    Raises:
        ValueError: The rule is not a product rule.
    """
    rings, angles = _product_shape(grid)
    first = slice(0, rings * angles, angles)
    legendre, _ = _legendre(lmax, grid.cos_beta[first], grid.sin_beta[first])
    return _scale(normalization) * legendre


def fourier_factors(grid: SphereGrid, lmax: int) -> Float64[Tensor, "angles {2*lmax+1}"]:
    """The second factor of a product rule: ``F_m = cos(m alpha)``, ``F_-m = sin(m alpha)``, m >= 0.

    Columns are m = -lmax ... lmax.

    Raises:
        ValueError: The rule is not a product rule.
    """
    _, angles = _product_shape(grid)
    return _fourier(lmax, grid.alpha[:angles])[:, lmax * lmax :]


def gradient_factors(
    grid: SphereGrid, lmax: int, normalization: GridNormalization = "component"
) -> list[tuple[Tensor, Tensor]]:
    """The factors of `gradient_matrices` on a product rule, a pair for each of the two fields.

    As `legendre_factors` and `fourier_factors`: [rings, (lmax+1)^2] and [angles, 2 lmax + 1].

    Raises:
        ValueError: The rule is not a product rule.
    """
    rings, angles = _product_shape(grid)
    first = slice(0, rings * angles, angles)
    cosine, sine = grid.cos_beta[first], grid.sin_beta[first]
    _, over_sine = _legendre(lmax, cosine, sine)
    slopes = _slopes(lmax, cosine, sine, over_sine)
    alpha, scale = grid.alpha[:angles], _scale(normalization)
    columns = slice(lmax * lmax, None)
    return [
        (scale * slopes, _fourier(lmax, alpha)[:, columns]),
        (scale * over_sine, _fourier_derivative(lmax, alpha)[:, columns]),
    ]


def _product_shape(grid: SphereGrid) -> tuple[int, int]:
    if grid.shape is None:
        raise ValueError(
            f"only product rules separate into Legendre and Fourier factors, got {grid.kind!r}"
        )
    return grid.shape


def _scale(normalization: GridNormalization) -> float:
    """From "component" to the normalisation."""
    if normalization not in get_args(GridNormalization):
        raise ValueError(
            f"normalization must be one of {get_args(GridNormalization)}, got {normalization!r}"
        )
    return 1.0 if normalization == "component" else 1 / math.sqrt(4 * math.pi)


def _legendre(lmax: int, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """P_lm and P_lm / sin(beta) [points, (lmax+1)^2] of "component" harmonics; the latter 0 at m=0.

    Both satisfy one recursion in l, stable upwards; only its start at l = m differs, where a power
    of the sine is divided out, so that nothing is ever divided by a sine.
    """
    values = cosine.new_zeros(len(cosine), (lmax + 1) ** 2)
    over_sine = torch.zeros_like(values)
    start, start_over_sine = torch.ones_like(cosine), torch.zeros_like(cosine)
    for m in range(lmax + 1):
        if m > 0:
            ratio = math.sqrt((2 * m + 1) / (2 * m) * (2 if m == 1 else 1))
            start, start_over_sine = ratio * sine * start, ratio * start
        for target, first in ((values, start), (over_sine, start_over_sine)):
            before, current = torch.zeros_like(first), first
            for l in range(m, lmax + 1):
                target[:, l * l + l - m] = target[:, l * l + l + m] = current
                up = math.sqrt((4 * (l + 1) ** 2 - 1) / ((l + 1) ** 2 - m * m))
                down = math.sqrt((l * l - m * m) / (4 * l * l - 1)) if l > 0 else 0.0
                before, current = current, up * (cosine * current - down * before)
    return values, over_sine


def _slopes(lmax: int, cosine: Tensor, sine: Tensor, over_sine: Tensor) -> Tensor:
    """Slopes d P_lm / d beta, from P_lm / sin(beta): the ladder in l, and in m where m = 0."""
    slopes = torch.zeros_like(over_sine)
    for l in range(1, lmax + 1):
        slopes[:, l * l + l] = -math.sqrt(l * (l + 1) / 2) * sine * over_sine[:, l * l + l + 1]
        for m in range(1, l + 1):
            lower = over_sine[:, (l - 1) ** 2 + l - 1 + m] if m < l else torch.zeros_like(cosine)
            ratio = math.sqrt((2 * l + 1) / (2 * l - 1) * (l * l - m * m))
            slope = l * cosine * over_sine[:, l * l + l + m] - ratio * lower
            slopes[:, l * l + l - m] = slopes[:, l * l + l + m] = slope
    return slopes


def _fourier(lmax: int, alpha: Tensor) -> Tensor:
    """cos(m alpha) for m >= 0 and sin(|m| alpha) for m < 0, [points, (lmax+1)^2]."""
    m = _orders(lmax)
    angle = alpha[:, None] * m.abs()
    return torch.where(m >= 0, angle.cos(), angle.sin())


def _fourier_derivative(lmax: int, alpha: Tensor) -> Tensor:
    """Derivatives of `_fourier` in alpha."""
    m = _orders(lmax)
    angle = alpha[:, None] * m.abs()
    return m.abs() * torch.where(m >= 0, -angle.sin(), angle.cos())


def _orders(lmax: int) -> Tensor:
    """The order m of every harmonic."""
    return torch.cat([torch.arange(-l, l + 1) for l in range(lmax + 1)])
