"""Many-body Gaunt products as symmetric couplings: what they span, and their effective weights.

A Gaunt product is a polynomial of x, and so a combination of the orthonormal symmetric couplings
whose coefficients `SymmetricContraction` has as weights. This module works them out without a grid,
from Clebsch-Gordan constants alone.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.irreps import Irrep, Irreps
from eqtp.so3.clebsch_gordan import wigner_3j
from eqtp.so3.symmetric_coupling import (
    SymmetricCoupling,
    couple,
    identity_blocks,
    project_coupling,
    stack,
    symmetric_coupling,
)

__all__ = ["gaunt_couplings", "independent_weights"]


def gaunt_couplings(
    problem: GauntContractionProblem, degree: int, power: int
) -> tuple[list[tuple[int, ...]], Float64[Tensor, "num_terms num_paths"]]:
    """The terms of P_L(B_k) in the orthonormal basis of symmetric couplings.

    Args:
        problem: The product.
        degree: Degree L, one of irreps_out.
        power: Power k.

    Returns:
        For every term the rows of the weights u and v that multiply it, and projection[term, path]
        such that P_L(B_k) = sum_term (product of the term's weights) sum_path projection[term,
        path] U_path x ... x, with U the basis
        `symmetric_coupling(irreps_in, L, k)`. The rank of projection is the number of couplings
        that the product spans.

    Example:
        >>> problem = GauntContractionProblem.from_irreps("0e+1o+2e+3o", "1o", 3)
        >>> _, projection = gaunt_couplings(problem, 1, 3)
        >>> projection.shape[1], int(torch.linalg.matrix_rank(projection))
        (12, 9)
    """
    irreps = Irreps([(1, ir) for _, ir in problem.irreps_in])
    ir = Irrep(degree, (-1) ** degree)
    terms = _intermediates(irreps, problem, power)
    chosen = {rows: term for (rows, l), term in terms.items() if l == degree}
    given = SymmetricCoupling(irreps, ir, power, stack([*chosen.values()], irreps, ir, power))
    return [*chosen], project_coupling(given, symmetric_coupling(irreps, ir, power))


def independent_weights(
    weight: Float[Tensor, "num_elements num_weights num_channels"],
    problem: GauntContractionProblem,
) -> Float[Tensor, "num_elements num_paths num_channels"]:
    """The weights with which `SymmetricContraction(method="cg")` computes the same.

    They are polynomials of the weights given: every symmetric coupling gets the product of the u
    and v that lead to it, times w.

    Args:
        weight: Weights of the Gaunt product.
        problem: The Gaunt product.

    Returns:
        Weights in the order of `SymmetricContractionProblem` with basis "independent".
    """
    pieces = []
    for block, degree in enumerate(problem.degrees_out):
        of_powers = weight[:, problem.power_weights(block)]
        for power in range(1, problem.correlation + 1):
            terms, projection = gaunt_couplings(problem, degree, power)
            piece = weight.new_zeros(weight.shape[0], projection.shape[1], weight.shape[2])
            for rows, row in zip(terms, projection.to(weight), strict=True):
                piece = piece + weight[:, rows].prod(dim=1, keepdim=True) * row[:, None]
            scale = of_powers[:, power - 1 : power] * problem.norm[block][power - 1]
            pieces.append(scale * piece)
    return torch.cat(pieces, dim=1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _intermediates(
    irreps: Irreps, problem: GauntContractionProblem, power: int
) -> dict[tuple[tuple[int, ...], int], Tensor]:
    """The terms of B_power as polynomials [1, 2 degree + 1, num_monomials].

    Keys are the rows of the weights that multiply a term, ascending, and its degree.
    """
    first = problem.input_weights(power).start
    if power == 1:
        blocks = enumerate(identity_blocks(irreps))
        return {((first + block,), ir.l): rows[None] for block, (ir, rows) in blocks}
    terms: dict[tuple[tuple[int, ...], int], Tensor] = {}
    for (before, l), polynomial in _intermediates(irreps, problem, power - 1).items():
        left = Irrep(l, (-1) ** l)
        if problem.has_step(power):
            before = (*before, problem.step_weights(power).start + l)
        for block, (_, right) in enumerate(irreps):
            rows = tuple(sorted((*before, first + block)))
            for ir in left * right:
                if ir.p != (-1) ** ir.l or ir.l > problem.limit(power):
                    continue
                # `couple` has sqrt(2 l3 + 1) w3j; the mean of three harmonics over the sphere is
                # sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1)) w3j[0, 0, 0] w3j.
                scale = float(wigner_3j(ir.l, l, right.l)[ir.l, l, right.l])
                scale *= ((2 * l + 1) * (2 * right.l + 1)) ** 0.5
                term = scale * couple(polynomial, left, irreps, block, ir, power)
                terms[rows, ir.l] = terms[rows, ir.l] + term if (rows, ir.l) in terms else term
    return terms
