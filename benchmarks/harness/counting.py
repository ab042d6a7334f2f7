"""Least work of products: flops and numbers, counted from the problem."""

from __future__ import annotations

import math

from eqtp.benchmarks.harness.case import Work
from eqtp.problem import Path, TensorProductProblem
from eqtp.so3 import wigner_3j
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["contraction_work", "flops_per_row", "product_work"]

_ZERO = 1e-14  # of constants of norm 1: rounding of the float64 generators


def flops_per_row(problem: TensorProductProblem) -> int:
    """Multiplications and additions of one row by the cheapest of the plain orders.

    Path by path: constants with x2 once for all channels, only where they are not zero; the matrix
    that results with x1; weights; channels mixed where the mode mixes them. Two flops for each
    product that is summed.

    Example:
        >>> from eqtp.benchmarks.problems import PROBLEMS
        >>> flops_per_row(PROBLEMS["mace-large"].problem)
        57390
    """
    return sum(_path_flops(problem, path) for path in problem.paths)


def _path_flops(problem: TensorProductProblem, path: Path) -> int:
    mul1, mul2, mul3 = problem.multiplicities(path)
    nonzero = wigner_3j(*problem.degrees(path)).abs() > _ZERO
    constants = int(nonzero.sum())
    elements = int(nonzero.any(dim=1).sum())  # of the matrix [m1, m3] that x2 makes
    dim3 = nonzero.shape[2]
    if "<" in path.mode:
        pairs = channels = math.comb(mul1, 2)
    elif path.mode in ("uuu", "uuw"):
        pairs = channels = mul1
    else:
        pairs, channels = mul1 * mul2, mul2
    flops = 2 * constants * channels + 2 * elements * pairs
    if path.mode in ("uvw", "uuw", "u<vw"):
        return flops + 2 * pairs * mul3 * dim3
    return flops + (pairs * dim3 if path.has_weight else 0)


def product_work(
    problem: TensorProductProblem,
    task: str,
    *,
    rows_in1: int,
    rows: int,
    rows_out: int,
    shared_weights: bool,
) -> Work:
    """Least work of a task on rows (edges): every operand and result once, memory never again.

    The product is linear in each operand, so each gradient costs what the product costs: backward
    is the product and three of them, double backward the product, the forces, and two gradients of
    the forces.
    """
    dim1, dim2, numel, dim_out = problem.dims
    x1, x2, out = rows_in1 * dim1, rows * dim2, rows_out * dim_out
    weight = numel if shared_weights else rows * numel
    passes = {"forward": 1, "backward": 4, "double backward": 4}[task]
    operands = x1 + x2 + weight
    numbers = {
        "forward": operands + out,
        "backward": 2 * operands + 2 * out,
        "double backward": 2 * operands + 2 * out,
    }[task]
    return Work(float(passes * rows * flops_per_row(problem)), float(numbers))


def contraction_work(
    problem: SymmetricContractionProblem, task: str, *, rows: int, num_elements: int
) -> Work:
    """Least work of a task of a symmetric contraction on rows (nodes).

    A result is a polynomial, sum_t c_t monomial_t. Its coefficients c = sum_k coupling_k weight_k
    are made once per channel and element that can be among the rows: two flops for each coupling
    that is not zero. A term costs a row and channel two flops; the products that form monomials
    are shared by terms and not counted. The gradient in x and that in the weights have the same
    terms: backward is three times the polynomial, and so is double backward, the polynomial, the
    forces, and their gradient in the weights.

    Example:
        >>> problem = SymmetricContractionProblem.from_irreps("2x0e+2x1o", "2x0e", 2)
        >>> contraction_work(problem, "forward", rows=10, num_elements=3)  # a + b a a + c |v|^2
        Work(flops=260.0, numbers=118.0)
    """
    channels, elements = problem.num_channels, min(rows, num_elements)
    couplings = terms = 0
    for _, coupling in problem.couplings():
        nonzero = coupling.coefficients.abs() > _ZERO
        couplings += int(nonzero.sum())
        terms += int(nonzero.any(dim=0).sum())
    flops = 2 * channels * (elements * couplings + rows * terms)
    operands = rows * problem.dim_in + elements * problem.num_paths
    numbers = channels * (operands + rows * problem.dim_out)
    passes, moved = {"forward": (1, 1), "backward": (3, 2), "double backward": (3, 2)}[task]
    return Work(float(passes * flops), float(moved * numbers))
