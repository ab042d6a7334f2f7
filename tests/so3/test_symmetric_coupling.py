"""Bases of symmetric couplings: counts, orthonormality, equivariance, the map from MACE's basis."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eqtp.irreps import Irrep, Irreps
from eqtp.so3 import rand_matrix, wigner_3j, wigner_D
from eqtp.so3.symmetric_coupling import (
    SymmetricCoupling,
    nested_coupling,
    project_coupling,
    symmetric_coupling,
)

TOLERANCES = {
    "basis": 1e-12,  # Gram-Schmidt of at most 46 tensors; 2e-15 measured
    "equivariance": 1e-11,  # products of four rotated components of size one; 1e-13 measured
}

LMAX_2, LMAX_3 = "0e+1o+2e", "0e+1o+2e+3o"

# Published: the character integral over O(3) of the symmetric power (reference figures for natural
# parity), and the numbers of nested couplings in mace-torch (correlation 4: natural parity only).
COUNTS = {  # (irreps, degree): paths for 0e, 1o, 2e
    (LMAX_2, 1): (1, 1, 1),
    (LMAX_2, 2): (3, 2, 3),
    (LMAX_2, 3): (5, 5, 6),
    (LMAX_2, 4): (9, 9, 13),
    (LMAX_3, 1): (1, 1, 1),
    (LMAX_3, 2): (4, 3, 5),
    (LMAX_3, 3): (8, 12, 14),
    (LMAX_3, 4): (23, 31, 46),
}
NESTED_COUNTS = {
    (LMAX_2, 3): (11, 21, 23),
    (LMAX_3, 1): (1, 1, 1),
    (LMAX_3, 2): (4, 6, 7),
    (LMAX_3, 3): (23, 51, 65),
}
MIXED_PARITY = "0e+0o+1o+1e"


def evaluate(coupling: SymmetricCoupling, a: Tensor) -> Tensor:
    """The polynomials [num_paths, dim_out] at one vector."""
    return coupling.coefficients @ a[coupling.monomials].prod(dim=1)


def character_count(irreps: Irreps, ir_out: Irrep, degree: int) -> int:
    """Number of couplings by characters: integral over O(3) of chi_out times chi of Sym^degree.

    The power sums chi(g^k) give the character of the symmetric power by Newton's recursion.
    """
    points = 400  # exact for trigonometric polynomials of lower degree
    angle = (torch.arange(points) + 0.5) * math.pi / points
    weight = (1 - torch.cos(angle)) / points  # the class measure of SO(3)
    total = 0.0
    for inversion in (1, -1):

        def character(ir: Irrep, power: int, inversion: int = inversion) -> Tensor:
            parity = ir.p if inversion**power < 0 else 1
            orders = torch.arange(-ir.l, ir.l + 1)[:, None]
            return parity * torch.cos(orders * power * angle).sum(dim=0)

        sums = [
            torch.stack([character(ir, k) for _, ir in irreps]).sum(dim=0)
            for k in range(1, degree + 1)
        ]
        symmetric = [torch.ones(points)]
        for n in range(1, degree + 1):
            terms = [sums[k - 1] * symmetric[n - k] for k in range(1, n + 1)]
            symmetric.append(torch.stack(terms).sum(dim=0) / n)
        total += float((weight * symmetric[degree] * character(ir_out, 1)).sum()) / 2
    return round(total)


@pytest.mark.parametrize(("irreps", "degree"), COUNTS)
def test_numbers_of_symmetric_couplings_are_the_published_ones(irreps: str, degree: int) -> None:
    found = [
        symmetric_coupling(Irreps(irreps), Irrep(ir), degree).num_paths for ir in ("0e", "1o", "2e")
    ]
    assert tuple(found) == COUNTS[irreps, degree]


@pytest.mark.parametrize("irreps", [MIXED_PARITY, "1o+1o", "2e", "1e+2o+3o"])
@pytest.mark.parametrize("ir_out", ["0e", "0o", "1o", "1e", "2e"])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_numbers_equal_the_character_integral(irreps: str, ir_out: str, degree: int) -> None:
    expected = character_count(Irreps(irreps), Irrep(ir_out), degree)
    assert symmetric_coupling(Irreps(irreps), Irrep(ir_out), degree).num_paths == expected


@pytest.mark.parametrize(("irreps", "degree"), NESTED_COUNTS)
def test_numbers_of_nested_couplings_are_those_of_mace(irreps: str, degree: int) -> None:
    found = [
        nested_coupling(Irreps(irreps), Irrep(ir), degree).num_paths for ir in ("0e", "1o", "2e")
    ]
    assert tuple(found) == NESTED_COUNTS[irreps, degree]


@pytest.mark.parametrize(
    ("irreps", "ir_out", "degree"),
    [(LMAX_3, "0e", 3), (LMAX_3, "2e", 3), (LMAX_2, "1o", 4), (MIXED_PARITY, "1e", 3)],
)
def test_the_basis_is_orthonormal_and_symmetric(irreps: str, ir_out: str, degree: int) -> None:
    coupling = symmetric_coupling(Irreps(irreps), Irrep(ir_out), degree)
    u = coupling.dense()
    torch.testing.assert_close(u, u.transpose(1, degree), rtol=0, atol=TOLERANCES["basis"])
    flat = u.flatten(1, -2)
    gram = torch.einsum("mik,nil->mnkl", flat, flat)
    identity = torch.einsum("mn,kl->mnkl", torch.eye(len(u)), torch.eye(coupling.num_paths))
    torch.testing.assert_close(gram, identity, rtol=0, atol=TOLERANCES["basis"])


@pytest.mark.parametrize("build", [symmetric_coupling, nested_coupling])
@pytest.mark.parametrize(
    ("irreps", "ir_out", "degree"),
    [(LMAX_3, "1o", 3), (LMAX_2, "2e", 4), (MIXED_PARITY, "0o", 3), (MIXED_PARITY, "1e", 2)],
)
def test_couplings_are_equivariant(
    build: Callable[[Irreps, Irrep, int], SymmetricCoupling],
    irreps: str,
    ir_out: str,
    degree: int,
) -> None:
    coupling = build(Irreps(irreps), Irrep(ir_out), degree)
    rotation = rand_matrix()
    a = torch.randn(coupling.irreps_in.dim)
    for inversion in (1, -1):

        def represent(ir: Irrep, inversion: int = inversion) -> Tensor:
            return wigner_D(ir.l, rotation) * (ir.p if inversion < 0 else 1)

        moved = torch.block_diag(*(represent(ir) for _, ir in coupling.irreps_in)) @ a
        torch.testing.assert_close(
            evaluate(coupling, moved),
            evaluate(coupling, a) @ represent(coupling.irrep_out).T,
            rtol=0,
            atol=TOLERANCES["equivariance"],
        )


def test_polynomials_equal_the_dense_tensor_contracted() -> None:
    coupling = symmetric_coupling(Irreps(LMAX_2), Irrep("1o"), 3)
    a = torch.randn(9)
    dense = torch.einsum("mijkp,i,j,k->pm", coupling.dense(), a, a, a)
    torch.testing.assert_close(evaluate(coupling, a), dense)


def test_nested_couplings_of_degree_two_are_the_3j_tensors() -> None:
    coupling = nested_coupling(Irreps("1o+2e"), Irrep("1o"), 2)
    a = torch.randn(8)
    v, t = a[:3], a[3:]
    expected = torch.stack(
        [
            3**0.5 * torch.einsum("mij,i,j->m", wigner_3j(1, 1, 2), v, t),
            3**0.5 * torch.einsum("mij,i,j->m", wigner_3j(1, 2, 1), t, v),
        ]
    )
    torch.testing.assert_close(evaluate(coupling, a), expected)


@pytest.mark.parametrize(
    ("irreps", "ir_out", "degree"),
    [(LMAX_3, "0e", 3), (LMAX_3, "1o", 3), (LMAX_3, "2e", 3), (LMAX_2, "1o", 4)],
)
def test_projection_of_nested_couplings_is_exact(irreps: str, ir_out: str, degree: int) -> None:
    basis = symmetric_coupling(Irreps(irreps), Irrep(ir_out), degree)
    nested = nested_coupling(Irreps(irreps), Irrep(ir_out), degree)
    projection = project_coupling(nested, basis)
    a = torch.randn(basis.irreps_in.dim)
    torch.testing.assert_close(
        projection @ evaluate(basis, a), evaluate(nested, a), rtol=0, atol=TOLERANCES["basis"] * 100
    )
    assert torch.linalg.matrix_rank(projection) == basis.num_paths  # none is lost


def test_projection_reads_dense_tensors_of_any_symmetry() -> None:
    basis = symmetric_coupling(Irreps(LMAX_2), Irrep("0e"), 2)
    dense = basis.dense() @ torch.randn(basis.num_paths, 7)
    noise = torch.randn(*dense.shape[:-1], 7)
    dense = dense + noise - noise.transpose(1, 2)
    expected = project_coupling(dense, basis)
    torch.testing.assert_close(project_coupling(dense[0], basis), expected)  # as mace stores it
    assert expected.shape == (7, 3)


def test_projection_refuses_what_is_not_a_coupling() -> None:
    basis = symmetric_coupling(Irreps(LMAX_2), Irrep("1o"), 2)
    with pytest.raises(ValueError, match="must be equivariant of degree 2"):
        project_coupling(torch.randn(3, 9, 9, 4), basis)
    with pytest.raises(ValueError, match=r"must have the shape \(3, 9, 9, 'num_paths'\)"):
        project_coupling(torch.randn(9, 9, 4), basis)
    rounded = basis.dense().float()
    project_coupling(rounded, basis)
    with pytest.raises(ValueError, match="tolerance 1e-10"):
        project_coupling(rounded.double(), basis)


def test_a_first_call_in_inference_mode_leaves_usable_constants() -> None:
    irreps = Irreps("1e+2o")  # no other test uses them
    with torch.inference_mode():
        coupling = symmetric_coupling(irreps, Irrep("2o"), 2)
    weight = torch.randn(coupling.num_paths, requires_grad=True)
    torch.einsum("k,kMm->Mm", weight, coupling.coefficients).sum().backward()
    assert weight.grad is not None


def test_degree_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="degree must be at least 1, got 0"):
        symmetric_coupling(Irreps("0e"), Irrep("0e"), 0)
    with pytest.raises(ValueError, match="degree must be at least 1, got 0"):
        nested_coupling(Irreps("0e"), Irrep("0e"), 0)
