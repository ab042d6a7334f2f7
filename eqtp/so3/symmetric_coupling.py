"""Symmetric couplings: equivariant polynomials of one feature vector, as coefficient tables.

A coupling of degree n takes the components A_1 ... A_d of one vector (a direct sum of irreps) to
an irrep, out_M = sum U[M, i1 ... in] A_i1 ... A_in. Only the part of U that is symmetric in
i1 ... in matters, and that part is a homogeneous polynomial: one coefficient per monomial. In this
form symmetrising is automatic, a product is a polynomial product, and the tables are small
(3876 monomials against 65536 tensor entries for d = 16, n = 4).
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from eqtp.irreps import Irrep, Irreps
from eqtp.so3.clebsch_gordan import wigner_3j

__all__ = [
    "SymmetricCoupling",
    "couple",
    "identity_blocks",
    "nested_coupling",
    "project_coupling",
    "stack",
    "symmetric_coupling",
]

# Norm that a normalised candidate must keep beside the basis so far to be taken as independent.
# Measured: it is either above 0.12 or below 1e-15 (degree <= 4, lmax <= 4, both parities, repeated
# irreps; 2,700 candidates), so the choice does not depend on rounding.
_INDEPENDENT = 1e-6


@dataclass(frozen=True, eq=False)
class SymmetricCoupling:
    """Equivariant polynomials of one degree from a vector of irreps to one irrep.

    Attributes:
        irreps_in: Irreps of the vector, each with multiplicity one.
        irrep_out: Irrep of the result.
        degree: Degree n of the polynomials.
        coefficients: [num_paths, dim_out, num_monomials]; out_M of path k is
            sum_m coefficients[k, M, m] * prod_{i in monomials[m]} A_i. Not to be changed.
    """

    irreps_in: Irreps
    irrep_out: Irrep
    degree: int
    coefficients: Float64[Tensor, "num_paths dim_out num_monomials"]

    @property
    def num_paths(self) -> int:
        """Number of couplings."""
        return self.coefficients.shape[0]

    @property
    def monomials(self) -> Int64[Tensor, "num_monomials degree"]:
        """The components that each monomial multiplies, ascending."""
        return monomials(self.irreps_in.dim, self.degree)

    def dense(self) -> Float64[Tensor, "dim_out *components num_paths"]:
        """The tensor U[M, i1 ... in, k], symmetric in i1 ... in."""
        dim = self.irreps_in.dim
        values = self.coefficients / multinomials(dim, self.degree)
        dense = values[..., _entry_index(dim, self.degree)]
        shape = [self.irrep_out.dim, *[dim] * self.degree, self.num_paths]
        return dense.permute(1, 2, 0).reshape(shape)


def symmetric_coupling(irreps_in: Irreps, irrep_out: Irrep, degree: int) -> SymmetricCoupling:
    """Computes an orthonormal basis of the symmetric couplings.

    Orthonormal in the sense sum_i U[M, i1 ... in, k] U[N, i1 ... in, k'] = delta_MN delta_kk'.
    The basis of degree n is made from those of degree n - 1: each basis polynomial of each irrep J
    is coupled with each irrep of the vector, in the order of (J, path, block), and Gram-Schmidt
    keeps what is new. Order, signs and choice are thus fixed: weights stored for this basis keep
    their meaning on any machine.

    Args:
        irreps_in: Irreps of the vector; multiplicities are ignored, every block counts once.
        irrep_out: Irrep of the result.
        degree: Degree of the polynomials, at least 1.

    Returns:
        The basis, cached.

    Raises:
        ValueError: degree is below 1.

    Example:
        >>> symmetric_coupling(Irreps("0e+1o+2e+3o"), Irrep("1o"), 3).num_paths
        12
    """
    _check_degree(degree)
    return _symmetric_coupling(_single(irreps_in), Irrep(irrep_out), degree)


def nested_coupling(irreps_in: Irreps, irrep_out: Irrep, degree: int) -> SymmetricCoupling:
    """Computes the symmetric part of MACE's couplings, in MACE's order.

    These are all chains (((A_1 A_2) A_3) ... A_n) of couplings scaled by sqrt(2l+1) each, sorted by
    intermediate irrep at every step; at degree 4 MACE keeps only intermediates of natural parity.
    They are as many as tensors without symmetry need and so redundant here (51 for the 12 of
    `symmetric_coupling` above); some are zero. Source: Batatia et al., NeurIPS 2022,
    arXiv:2206.07697, equations 10 and 11; order as in mace-torch 0.3.16, 3j signs of eqtp.

    Args:
        irreps_in: Irreps of the vector; multiplicities are ignored, every block counts once.
        irrep_out: Irrep of the result.
        degree: Degree of the polynomials, at least 1.

    Returns:
        The couplings, linearly dependent in general.

    Raises:
        ValueError: degree is below 1.

    Example:
        >>> nested_coupling(Irreps("0e+1o+2e+3o"), Irrep("1o"), 3).num_paths
        51
    """
    _check_degree(degree)
    blocks, irrep_out = _single(irreps_in), Irrep(irrep_out)
    natural_only = degree == 4
    chains = [(ir, rows[None]) for ir, rows in identity_blocks(blocks)]
    chains.sort(key=lambda chain: _order(chain[0]))
    for step in range(2, degree + 1):
        reach = (degree - step) * blocks.lmax  # what the steps to come can still change in l
        longer = []
        for left, polynomial in chains:
            for block, (_, right) in enumerate(blocks):
                for ir in left * right:
                    if natural_only and ir.p != (-1) ** ir.l:
                        continue
                    if abs(ir.l - irrep_out.l) <= reach:
                        longer.append((ir, couple(polynomial, left, blocks, block, ir, step)))
        chains = sorted(longer, key=lambda chain: _order(chain[0]))
    kept = [polynomial for ir, polynomial in chains if ir == irrep_out]
    return SymmetricCoupling(blocks, irrep_out, degree, stack(kept, blocks, irrep_out, degree))


def project_coupling(
    coupling: SymmetricCoupling | Float[Tensor, "*shape num_given"],
    basis: SymmetricCoupling,
    *,
    tolerance: float | None = None,
) -> Float64[Tensor, "num_given num_paths"]:
    """Expresses the symmetric part of given couplings in an orthonormal basis.

    A model with weights w for the given couplings is the model with weights projection.T @ w for
    the basis. This is how weights of a mace-torch model are read, whatever its 3j signs.

    Args:
        coupling: Couplings, or their dense tensor U[M, i1 ... in, k]; the axis M may be missing
            where the irrep has dimension one.
        basis: A basis from `symmetric_coupling`.
        tolerance: Largest accepted norm of what the basis cannot express, per path; by default
            1e-10, and 1e-5 for tensors of lower precision than float64, which are rounded.

    Returns:
        projection[k, j]: U_k = sum_j projection[k, j] basis_j up to parts that are not symmetric.

    Raises:
        ValueError: A dense tensor has another shape, or a coupling is not in the span of the basis.

    Example:
        >>> basis = symmetric_coupling(Irreps("0e+1o"), Irrep("0e"), 2)
        >>> project_coupling(basis.dense(), basis).round(decimals=12)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    exact = isinstance(coupling, SymmetricCoupling) or coupling.dtype == torch.float64
    if isinstance(coupling, SymmetricCoupling):
        given = coupling.coefficients
    else:
        given = _polynomials(coupling, basis)
    metric = _metric(basis.irreps_in.dim, basis.degree, basis.irrep_out)
    projection = torch.einsum("kMm,jMm,m->kj", given, basis.coefficients, metric)
    rest = given - torch.einsum("kj,jMm->kMm", projection, basis.coefficients)
    missing = (rest.square() * metric).sum(dim=(1, 2)).sqrt()
    limit = tolerance if tolerance is not None else 1e-10 if exact else 1e-5
    if missing.numel() and not missing.max() <= limit:
        raise ValueError(
            f"coupling must be equivariant of degree {basis.degree} from '{basis.irreps_in}' to "
            f"'{basis.irrep_out}', got one of which a part of norm {missing.max():.1e} is not "
            f"(tolerance {limit:.0e}); check the order of the irreps and the precision"
        )
    return projection


def _polynomials(
    dense: Float[Tensor, "*shape num_given"], basis: SymmetricCoupling
) -> Float64[Tensor, "num_given dim_out num_monomials"]:
    """The symmetric part of dense tensors as polynomials."""
    dim, dim_out, degree = basis.irreps_in.dim, basis.irrep_out.dim, basis.degree
    shape = (dim_out, *[dim] * degree)
    if dense.shape[:-1] != shape and (dim_out != 1 or dense.shape[:-1] != shape[1:]):
        raise ValueError(
            f"coupling must have the shape {(*shape, 'num_paths')} for degree {degree} from "
            f"'{basis.irreps_in}' to '{basis.irrep_out}', got {tuple(dense.shape)}"
        )
    values = dense.detach().to("cpu", torch.float64).reshape(dim_out, -1, dense.shape[-1])
    result = values.new_zeros(dim_out, len(basis.monomials), dense.shape[-1])
    return result.index_add(1, _entry_index(dim, degree), values).permute(2, 0, 1)


@functools.cache
@torch.inference_mode(False)
def monomials(dim: int, degree: int) -> Int64[Tensor, "num_monomials degree"]:
    """All monomials of one degree in `dim` variables, as ascending tuples in lexical order."""
    tuples = list(itertools.combinations_with_replacement(range(dim), degree))
    return torch.tensor(tuples, dtype=torch.int64).view(len(tuples), degree)


@functools.cache
@torch.inference_mode(False)
def multinomials(dim: int, degree: int) -> Float64[Tensor, " num_monomials"]:
    """Number of tensor entries (i1 ... in) that belong to each monomial: n! / prod_i count_i!."""
    counts = [
        math.factorial(degree) // math.prod(math.factorial(row.count(i)) for i in set(row))
        for row in monomials(dim, degree).tolist()
    ]
    return torch.tensor(counts, dtype=torch.float64)


def _metric(dim: int, degree: int, irrep_out: Irrep) -> Float64[Tensor, " num_monomials"]:
    """Weights of the scalar product that is 1 for tensors with U[M] of norm 1 for every M."""
    metric: Tensor = 1 / (multinomials(dim, degree) * irrep_out.dim)
    return metric


def _entry_index(dim: int, degree: int) -> Int64[Tensor, " dim**degree"]:
    """Monomial of every entry (i1 ... in) of a dense tensor, in the tensor's order."""
    entries = torch.cartesian_prod(*[torch.arange(dim)] * degree).view(-1, degree)
    return monomial_index(entries.sort(dim=1).values, dim)


@functools.cache
@torch.inference_mode(False)
def products(dim: int, degree: int) -> Int64[Tensor, "num_lower dim"]:
    """Index of (monomial of degree - 1) times (variable) among the monomials of `degree`."""
    lower = monomials(dim, degree - 1)
    variables = torch.arange(dim)[None, :, None].expand(len(lower), -1, 1)
    tuples = torch.cat([lower[:, None, :].expand(-1, dim, -1), variables], dim=2)
    return monomial_index(tuples.sort(dim=2).values, dim)


def monomial_index(ascending: Int64[Tensor, "*batch degree"], dim: int) -> Int64[Tensor, "*batch"]:
    """Position of ascending tuples in `monomials`, whose base-dim numbers ascend."""
    degree = ascending.shape[-1]
    place = dim ** torch.arange(degree - 1, -1, -1)
    return torch.searchsorted((monomials(dim, degree) * place).sum(-1), (ascending * place).sum(-1))


@functools.cache
@torch.inference_mode(False)  # what is cached must serve later calls that record gradients
def _symmetric_coupling(blocks: Irreps, irrep_out: Irrep, degree: int) -> SymmetricCoupling:
    if degree == 1:
        candidates = [rows[None] for ir, rows in identity_blocks(blocks) if ir == irrep_out]
        return SymmetricCoupling(blocks, irrep_out, 1, stack(candidates, blocks, irrep_out, degree))
    metric = _metric(blocks.dim, degree, irrep_out)
    basis: list[Tensor] = []
    lower = {ir for _, right in blocks for ir in irrep_out * right}
    for left in sorted(lower, key=_order):
        for polynomial in _symmetric_coupling(blocks, left, degree - 1).coefficients:
            for block, (_, right) in enumerate(blocks):
                if irrep_out not in left * right:
                    continue
                new = couple(polynomial[None], left, blocks, block, irrep_out, degree)[0]
                for _ in range(2):  # the second pass removes what rounding left of the first
                    for old in basis:
                        new = new - (new * old * metric).sum() * old
                norm = (new.square() * metric).sum().sqrt()
                if norm > _INDEPENDENT:
                    basis.append(new / norm)
    stacked = stack([row[None] for row in basis], blocks, irrep_out, degree)
    return SymmetricCoupling(blocks, irrep_out, degree, stacked)


def couple(
    polynomials: Float64[Tensor, "paths dim_left num_lower"],
    left: Irrep,
    blocks: Irreps,
    block: int,
    irrep_out: Irrep,
    degree: int,
) -> Float64[Tensor, "paths dim_out num_monomials"]:
    """Couples polynomials of degree - 1 with one block of the vector: sqrt(2l+1) w3j p_m A_k."""
    columns = blocks.slices()[block]
    coupling = math.sqrt(irrep_out.dim) * wigner_3j(irrep_out.l, left.l, blocks[block].ir.l)
    terms = torch.einsum("pmn,Mmk->pMnk", polynomials, coupling)
    index = products(blocks.dim, degree)[:, columns]
    result = torch.zeros(*terms.shape[:2], len(monomials(blocks.dim, degree)), dtype=torch.float64)
    return result.index_add(2, index.reshape(-1), terms.flatten(2))


def identity_blocks(blocks: Irreps) -> list[tuple[Irrep, Float64[Tensor, "dim_block dim"]]]:
    """The couplings of degree one: each block itself, in order."""
    identity = torch.eye(blocks.dim, dtype=torch.float64)
    return [(ir, identity[rows]) for (_, ir), rows in zip(blocks, blocks.slices(), strict=True)]


def stack(
    rows: list[Tensor], blocks: Irreps, irrep_out: Irrep, degree: int
) -> Float64[Tensor, "num_paths dim_out num_monomials"]:
    """Polynomials one after the other, of which there may be none."""
    empty = torch.zeros(0, irrep_out.dim, len(monomials(blocks.dim, degree)), dtype=torch.float64)
    return torch.cat([empty, *rows])


def _single(irreps: Irreps) -> Irreps:
    """Every block once, whatever its multiplicity."""
    return Irreps([(1, ir) for _, ir in Irreps(irreps)])


def _order(irrep: Irrep) -> tuple[int, int]:
    return irrep.l, irrep.p


def _check_degree(degree: int) -> None:
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}")
