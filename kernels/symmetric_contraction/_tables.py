"""Constants of the symmetric contraction in plain PyTorch.

With A_0 = 1 every term becomes a monomial of degree n = correlation in the d + 1 variables A_0 ...
A_d, so that for one element and one channel, with its weights w contracted into the couplings,

    P_M(A) = sum_h c[M, h] A_h1 ... A_hn,          c[M, h] = sum_k w_k coefficient_k[M, h],
    dP_M / dA_i = sum_f table[M, i, f] F_f(A),     table[M, i, f] = c[M, i f] * (power of i in i f),

with F_f the monomials of degree n - 1. A component of a real irrep keeps or flips its sign under
half turns about the axes. That makes four classes; table[M, i, f] vanishes unless those of M, i and
f cancel, so four blocks of a quarter of the rows and columns do the work of the full matrix.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from eqtp.irreps import Irrep
from eqtp.so3.symmetric_coupling import monomial_index, monomials, products
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["Tables", "contraction_tables", "half_turns"]

NUM_CLASSES = 4


@dataclass(frozen=True, eq=False)
class Tables:
    """Constants of a problem in one dtype on one device.

    Rows are the pairs (M, i), columns the monomials of degree n - 1 in the variables A_0 = 1,
    A_1 ... A_d, both grouped by class and padded to the largest class.

    Attributes:
        degree: n, the correlation.
        dim_out: Number of components M.
        block_shape: (classes, rows, columns) of a table.
        paths: The table of every path, flat; 0 where padded.
        factors: The n - 1 variables of every column; any monomial where padded.
        paired_factors: For one factor after the other, its variables and those of the direction
            that stands behind the d + 1 variables.
        position: Row of every pair (M, i), in natural order.
        row_out: M of every row; 0 where padded.
        row_in: i of every row; 0 where padded.
    """

    degree: int
    dim_out: int
    block_shape: tuple[int, int, int]
    paths: Float[Tensor, "num_paths table_numel"]
    factors: tuple[Int64[Tensor, " columns"], ...]
    paired_factors: Int64[Tensor, " 2*(n-1)*columns"]
    position: Int64[Tensor, " pairs"]
    row_out: Int64[Tensor, " rows"]
    row_in: Int64[Tensor, " rows"]

    @property
    def num_columns(self) -> int:
        """Columns of all classes."""
        return self.block_shape[0] * self.block_shape[2]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # the cached tensors must serve later calls that record gradients
def contraction_tables(
    problem: SymmetricContractionProblem, dtype: torch.dtype, device: torch.device
) -> Tables:
    """The constants of a problem, cached."""
    variables, degree = problem.dim_in + 1, problem.correlation
    class_in = [0, *itertools.chain(*(half_turns(ir) for _, ir in problem.irreps_in))]
    class_out = [*itertools.chain(*(half_turns(ir) for _, ir in problem.irreps_out))]
    lower, higher = monomials(variables, degree - 1), monomials(variables, degree)
    columns: list[list[int]] = [[] for _ in range(NUM_CLASSES)]
    rows: list[list[tuple[int, int]]] = [[] for _ in range(NUM_CLASSES)]
    for column, factors in enumerate(lower.tolist()):
        columns[functools.reduce(int.__xor__, (class_in[i] for i in factors), 0)].append(column)
    for m, i in itertools.product(range(problem.dim_out), range(variables)):
        rows[class_out[m] ^ class_in[i]].append((m, i))

    num_rows, num_columns = max(map(len, rows)), max(map(len, columns))
    coefficients = _homogeneous_coefficients(problem)
    paths = coefficients.new_zeros(len(coefficients), NUM_CLASSES, num_rows, num_columns)
    position = torch.zeros(problem.dim_out, variables, dtype=torch.int64)
    row_out, row_in = torch.zeros(2, NUM_CLASSES, num_rows, dtype=torch.int64)
    monomial = torch.zeros(NUM_CLASSES, num_columns, dtype=torch.int64)
    for label in range(NUM_CLASSES):
        used = torch.tensor(columns[label], dtype=torch.int64)
        monomial[label, : len(used)] = used
        for row, (m, i) in enumerate(rows[label]):
            product = products(variables, degree)[used, i]
            power = (higher[product] == i).sum(dim=1)
            paths[:, label, row, : len(used)] = coefficients[:, m, product] * power
            position[m, i] = label * num_rows + row
            row_out[label, row], row_in[label, row] = m, i
    factors = lower[monomial.flatten()].T
    return Tables(
        degree=degree,
        dim_out=problem.dim_out,
        block_shape=(NUM_CLASSES, num_rows, num_columns),
        paths=paths.flatten(1).to(device, dtype),
        factors=tuple(factors.contiguous().to(device)),
        paired_factors=torch.stack([factors, factors + variables], dim=1).flatten().to(device),
        position=position.flatten().to(device),
        row_out=row_out.flatten().to(device),
        row_in=row_in.flatten().to(device),
    )


def _homogeneous_coefficients(
    problem: SymmetricContractionProblem,
) -> Float64[Tensor, "num_paths dim_out num_monomials"]:
    """Coefficients of all paths for the monomials of full degree in d + 1 variables."""
    variables, degree = problem.dim_in + 1, problem.correlation
    num_monomials = math.comb(variables + degree - 1, degree)
    rows = []
    for block, coupling in problem.couplings():
        ones = torch.zeros(len(coupling.monomials), degree - coupling.degree, dtype=torch.int64)
        index = monomial_index(torch.cat([ones, coupling.monomials + 1], dim=1), variables)
        row = coupling.coefficients.new_zeros(coupling.num_paths, problem.dim_out, num_monomials)
        row[:, block, index] = coupling.coefficients
        rows.append(row)
    return torch.cat(rows)


def half_turns(irrep: Irrep) -> list[int]:
    """Class of every component: bit 0, sign under a half turn about y; bit 1, about z.

    With the polar axis y and the azimuth from z to x, the component m goes with cos(m phi) for
    m >= 0 and sin(|m| phi) for m < 0. A half turn about y adds pi to phi: (-1)^m. One about z turns
    phi and y round: (-1)^(l+m), and once more -1 for a sine. Inversion plays no part.
    """
    return [(m % 2) | (((irrep.l + m + (m < 0)) % 2) << 1) for m in range(-irrep.l, irrep.l + 1)]
