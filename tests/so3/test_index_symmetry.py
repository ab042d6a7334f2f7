from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from eqtp.irreps import Irreps
from eqtp.so3 import (
    irreps_to_tensor,
    rand_matrix,
    tensor_irreps,
    tensor_symmetry,
    tensor_to_irreps,
    wigner_D,
)
from eqtp.so3.index_symmetry import _chains, _permutations, _symmetriser

# Products of orthogonal matrices of 3^rank rows; 3e-15 measured up to rank 4, 8e-15 at rank 6.
TOLERANCES = {"identity": 1e-12}

# Formula -> irreps, the list of the reference page (SO(3) content by characters, parity by rank).
IRREPS = {
    "": "0e",
    "i": "1o",
    "ij": "0e+1e+2e",
    "ij=ji": "0e+2e",
    "ij=-ji": "1e",
    "ijk": "0o+3x1o+2x2o+3o",
    "ijk=ikj": "2x1o+2o+3o",
    "ijk=jik=kij": "1o+3o",
    "ijk=-jik=-ikj": "0o",
    "ijkl=jikl=ijlk=klij": "2x0e+2x2e+4e",
    "ijkl=jikl=ijlk": "2x0e+1e+3x2e+3e+4e",
    "ijkl=jikl=kjil=ljki": "0e+2e+4e",
}
TRACELESS = {
    "i": "1o",
    "ij": "1e+2e",
    "ij=ji": "2e",
    "ijk=jik=kij": "3o",
    "ijk=ikj": "2o+3o",
    "ijkl=jikl=ijlk=klij": "4e",
}


def rotate(tensor: Tensor, rotation: Tensor, rank: int) -> Tensor:
    for index in range(rank):
        axis = tensor.ndim - rank + index
        tensor = torch.tensordot(tensor, rotation, dims=([axis], [1])).movedim(-1, axis)
    return tensor


@pytest.mark.parametrize("formula", IRREPS)
def test_irreps_of_the_formulas(formula: str) -> None:
    assert tensor_irreps(formula) == Irreps(IRREPS[formula]).simplify()


@pytest.mark.parametrize("formula", TRACELESS)
def test_irreps_of_traceless_tensors(formula: str) -> None:
    assert tensor_irreps(formula, traceless=True) == Irreps(TRACELESS[formula]).simplify()


@pytest.mark.parametrize("traceless", [False, True])
@pytest.mark.parametrize("formula", [f for f in IRREPS if f in TRACELESS])
def test_the_basis_is_orthonormal_and_obeys_the_formula(formula: str, traceless: bool) -> None:
    symmetry = tensor_symmetry(formula, traceless)
    flat = symmetry.matrix
    assert (flat @ flat.T - torch.eye(len(flat))).abs().max() < TOLERANCES["identity"]
    rank, group = _permutations(formula)
    for permutation, sign in group.items():
        moved = symmetry.basis.permute(0, *(p + 1 for p in permutation))
        assert (moved - sign * symmetry.basis).abs().max() < TOLERANCES["identity"]
    if traceless:
        for i, j in itertools.combinations(range(1, rank + 1), 2):
            trace = symmetry.basis.diagonal(dim1=i, dim2=j).sum(-1)
            assert trace.abs().max() < TOLERANCES["identity"]


@pytest.mark.parametrize("formula", IRREPS)
def test_the_basis_spans_every_tensor_that_obeys_the_formula(formula: str) -> None:
    rank, group = _permutations(formula)
    flat = tensor_symmetry(formula).matrix
    assert (flat.T @ flat - _symmetriser(rank, group)).abs().max() < TOLERANCES["identity"]


@pytest.mark.parametrize("formula", [f for f in IRREPS if f])
def test_tensors_turn_as_their_irreps(formula: str) -> None:
    symmetry = tensor_symmetry(formula)
    rotation = rand_matrix(dtype=torch.float64)
    x = torch.randn(2, symmetry.irreps.dim, dtype=torch.float64)
    blocks = [wigner_D(ir.l, rotation) for mul, ir in symmetry.irreps for _ in range(mul)]
    turned = irreps_to_tensor(x @ torch.block_diag(*blocks).T, formula)
    expected = rotate(irreps_to_tensor(x, formula), rotation, symmetry.rank)
    assert (turned - expected).abs().max() < TOLERANCES["identity"]
    assert {ir.p for _, ir in symmetry.irreps} == {(-1) ** symmetry.rank}


@pytest.mark.parametrize("formula", IRREPS)
def test_labels_come_back_and_squares_agree(formula: str) -> None:
    x = torch.randn(4, 2, tensor_irreps(formula).dim, dtype=torch.float64)
    tensor = irreps_to_tensor(x, formula)
    assert (tensor_to_irreps(tensor, formula) - x).abs().max() < TOLERANCES["identity"]
    assert irreps_to_tensor(x[0, 0], formula).shape == tensor.shape[2:]
    squares = tensor.reshape(4, 2, -1).square().sum(-1)
    torch.testing.assert_close(squares, x.square().sum(-1), rtol=1e-13, atol=0)


@pytest.mark.parametrize("formula", ["ij=ji", "ijk", "ijk=ikj", "ijkl=jikl=ijlk=klij"])
def test_each_degree_spans_what_e3nn_finds(formula: str) -> None:
    """Bases of a degree that occurs twice may differ by a rotation, the space may not."""
    from e3nn.o3 import ReducedTensorProducts

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs = ReducedTensorProducts(formula, **dict.fromkeys(formula.partition("=")[0], "1o"))
    finally:
        torch.set_default_dtype(default)
    ours = tensor_symmetry(formula)
    assert ours.irreps == theirs.irreps_out.simplify()
    change = theirs.change_of_basis.flatten(1)
    for l in {ir.l for _, ir in ours.irreps}:
        mine = torch.cat(
            [
                ours.matrix[columns]
                for (_, ir), columns in zip(ours.irreps, ours.irreps.slices(), strict=True)
                if ir.l == l
            ]
        )
        other = torch.cat(
            [
                change[columns]
                for (_, ir), columns in zip(
                    theirs.irreps_out, theirs.irreps_out.slices(), strict=True
                )
                if ir.l == l
            ]
        )
        # e3nn solves least squares by sampled rotations: 1e-9 measured.
        assert (mine.T @ mine - other.T @ other).abs().max() < 1e-7


def test_the_chains_are_an_orthogonal_matrix_at_every_rank() -> None:
    for rank in range(6):
        flat = torch.cat([chains.flatten(0, 1) for chains in _chains(rank).values()])
        assert flat.shape == (3**rank, 3**rank)
        assert (flat @ flat.T - torch.eye(3**rank)).abs().max() < TOLERANCES["identity"]


def test_random_formulas_have_the_dimension_of_their_space() -> None:
    """The trace of the symmetriser counts the tensors; a wrong cut-off would lose some."""
    generator = random.Random(1)
    checked = 0
    while checked < 20:
        letters = "ijklm"[: generator.randint(2, 5)]
        terms = [letters] + [
            generator.choice(["", "", "-"]) + "".join(generator.sample(letters, len(letters)))
            for _ in range(generator.randint(1, 2))
        ]
        try:
            rank, group = _permutations("=".join(terms))
            dim = tensor_irreps("=".join(terms)).dim
        except ValueError:
            continue
        assert dim == round(float(_symmetriser(rank, group).trace()))
        checked += 1


def test_known_numbers() -> None:
    assert tensor_symmetry("i").basis.tolist() == torch.eye(3).tolist()
    delta = torch.eye(3, dtype=torch.float64)
    assert (tensor_symmetry("ij=ji").basis[0] - delta / 3**0.5).abs().max() < 1e-15
    levi_civita = tensor_symmetry("ijk=-jik=-ikj").basis[0]
    assert levi_civita[0, 1, 2].abs().item() == pytest.approx(6**-0.5, abs=1e-15)


def test_parity_can_be_chosen() -> None:
    assert tensor_irreps("i", parity=1) == Irreps("1e")
    assert tensor_irreps("ij=ji", parity=-1) == Irreps("0o+2o")


def test_labels_without_the_symmetry_are_refused() -> None:
    tensor = torch.eye(3).repeat(3, 1, 1)
    tensor[1, 0, 1] = 0.5
    with pytest.raises(ValueError, match=r"obey 'ij=ji'.*number 1.*norm 0\.35 does not"):
        tensor_to_irreps(tensor, "ij=ji")
    assert tensor_to_irreps(tensor, "ij=ji", tolerance=None).shape == (3, 6)
    with pytest.raises(ValueError, match="be traceless"):
        tensor_to_irreps(torch.eye(3), "ij=ji", traceless=True)
    with pytest.raises(ValueError, match=r"\[\.\.\., 3, 3\].*\(3, 4\)"):
        tensor_to_irreps(torch.zeros(3, 4), "ij=ji")
    with pytest.raises(ValueError, match="6 columns"):
        irreps_to_tensor(torch.zeros(2, 9), "ij=ji")


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("ii", "different letters"),
        ("i1", "different letters"),
        ("ij=ik", "hold the indices 'ij'"),
        ("ij=-ij", "its own negative"),
        ("ijk=jki=-kij", "its own negative"),
        ("ijklmno", "at most 6 indices"),
    ],
)
def test_formulas_that_make_no_sense_are_refused(formula: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tensor_symmetry(formula)


def test_a_traceless_scalar_part_is_no_tensor() -> None:
    with pytest.raises(ValueError, match="other than zero"):
        tensor_symmetry("ijkl=-jikl=-ikjl=-ijlk")
    with pytest.raises(ValueError, match="parity must be"):
        tensor_symmetry("i", parity=0)
