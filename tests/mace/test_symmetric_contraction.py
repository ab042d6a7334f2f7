"""The symmetric contraction against mace-torch 0.3.16."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eqtp.irreps import Irrep, Irreps
from eqtp.layout import to_layout
from eqtp.nn.symmetric_contraction import Basis, SymmetricContraction
from eqtp.so3.symmetric_coupling import nested_coupling, project_coupling, symmetric_coupling

pytestmark = pytest.mark.mace
pytest.importorskip("mace")

TOLERANCES = {
    "couplings": 1e-12,  # e3nn 0.4.4's table carries 1e-15 of noise
    "values": 1e-12,  # relative
    "gradients": 1e-11,  # relative, gradients of a function of gradients
}

LMAX_3 = "0e+1o+2e+3o"


def mace_contraction(irreps_out: str, channels: int, correlation: int) -> Any:
    from mace.modules.symmetric_contraction import SymmetricContraction as MaceContraction

    def expand(irreps: str) -> Irreps:
        return Irreps("+".join(f"{channels}x{ir}" for ir in irreps.split("+")))

    return MaceContraction(expand(LMAX_3), expand(irreps_out), correlation, num_elements=3)


def read(theirs: Any, correlation: int, basis: Basis) -> SymmetricContraction:
    """Our module with the couplings and weights of theirs."""
    ours = SymmetricContraction(theirs.irreps_in, theirs.irreps_out, correlation, 3, basis=basis)
    for block, contraction in enumerate(theirs.contractions):
        weights = [contraction.weights_max, *contraction.weights]  # descending degree
        for degree, weight in zip(range(correlation, 0, -1), weights, strict=True):
            ours.set_coupling(block, degree, contraction.U_tensors(degree), weight)
    return ours


@pytest.mark.parametrize("irreps_in", ["0e+1o", "0e+1o+2e", LMAX_3])
@pytest.mark.parametrize("ir_out", ["0e", "1o", "2e"])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_couplings_are_those_of_mace_up_to_signs(irreps_in: str, ir_out: str, degree: int) -> None:
    from mace.tools.cg import U_matrix_real

    basis = symmetric_coupling(Irreps(irreps_in), Irrep(ir_out), degree)
    u = U_matrix_real(
        irreps_in=Irreps(irreps_in),
        irreps_out=Irreps(ir_out),
        correlation=degree,
        dtype=torch.float64,
    )[-1]
    if not u.any():  # their stand-in where no coupling exists
        assert basis.num_paths == 0
        return
    theirs = project_coupling(u, basis)
    ours = project_coupling(nested_coupling(Irreps(irreps_in), Irrep(ir_out), degree), basis)
    signs = torch.where((theirs * ours).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    torch.testing.assert_close(ours * signs, theirs, rtol=0, atol=TOLERANCES["couplings"])


def test_couplings_of_degree_four_are_those_of_mace() -> None:
    from mace.tools.cg import U_matrix_real

    irreps, ir_out = Irreps("0e+1o+2e"), Irrep("1o")
    basis = symmetric_coupling(irreps, ir_out, 4)
    u = U_matrix_real(irreps, Irreps("1o"), 4, dtype=torch.float64, use_cueq_cg=False)[-1]
    theirs = project_coupling(u, basis)
    ours = project_coupling(nested_coupling(irreps, ir_out, 4), basis)
    signs = torch.where((theirs * ours).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    torch.testing.assert_close(ours * signs, theirs, rtol=0, atol=TOLERANCES["couplings"])


@pytest.mark.parametrize("basis", ["mace", "independent"])
@pytest.mark.parametrize(
    ("irreps_out", "correlation"), [("0e", 3), ("0e+1o", 3), ("0e+1o+2e", 3), ("0e+1o", 2)]
)
def test_values_and_gradients_are_those_of_mace(
    basis: Basis, irreps_out: str, correlation: int
) -> None:
    theirs = mace_contraction(irreps_out, channels=5, correlation=correlation)
    ours = read(theirs, correlation, basis)
    x = torch.randn(11, 80, requires_grad=True)
    element = torch.randint(3, (11,))
    one_hot = torch.nn.functional.one_hot(element, 3).to(x)
    stacked = to_layout(x, theirs.irreps_in, "mul_ir", "ir_mul").view(11, 16, 5).mT
    results = []
    for out in (ours(x, element), theirs(stacked, one_hot)):
        (force,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(force.square().sum(), x, retain_graph=True)
        results.append((out, force, second))
    for mine, other, kind in zip(*results, ("values", "gradients", "gradients"), strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(mine, other, rtol=0, atol=TOLERANCES[kind] * scale)
    if basis == "independent":
        return
    losses = [force.square().sum() for _, force, _ in results]
    source = [
        weight
        for contraction in theirs.contractions
        for weight in reversed([contraction.weights_max, *contraction.weights])
    ]
    mine = torch.autograd.grad(losses[0], [*ours.weights])
    other = torch.autograd.grad(losses[1], source)
    for a, b in zip(mine, other, strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCES["gradients"] * scale)
