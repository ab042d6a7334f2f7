"""The backend for MACE 1.0 beside the modules of mace-torch 0.3.16."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("mace", reason="needs the environment .venv-mace of `make test`")

from eqtp.irreps import Irreps
from eqtp.models.acceleration.mace_backend import SymmetricContraction

pytestmark = pytest.mark.mace

TOLERANCES = {"values": 1e-12, "gradients": 1e-11}  # float64; orders of summation leave 1e-15
IRREPS_IN, IRREPS_OUT, CHANNELS, CORRELATION = "0e+1o+2e+3o", "0e+1o", 3, 3


@pytest.fixture(autouse=True)
def _fresh_tensors_are_nan() -> None:
    """Not here: mace-torch is TorchScript, which cannot compile the replaced torch.empty."""


def wide(irreps: str) -> Irreps:
    return Irreps([(CHANNELS, ir) for _, ir in Irreps(irreps)])


def test_contraction_is_mace_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the couplings of mace-torch as the basis, values and gradients of a force loss agree."""
    from mace.modules.symmetric_contraction import SymmetricContraction as MaceTorch

    theirs = MaceTorch(wide(IRREPS_IN), wide(IRREPS_OUT), CORRELATION, num_elements=2)
    parts = dict(zip(("0e", "1o"), theirs.contractions, strict=True))

    def build(irreps_in: str, degree: int, irreps_out: str) -> dict[str, Any]:
        couplings = getattr(parts[irreps_out], f"U_matrix_{degree}").movedim(-1, 0)
        return {irreps_out: couplings.numpy()}

    library = ModuleType("mace_core.clebsch_gordan.reduced_basis")
    library.full_symmetric_tensor_product_basis = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    descriptor = SimpleNamespace(
        irreps_in=IRREPS_IN,
        irreps_out=IRREPS_OUT,
        correlation=CORRELATION,
        num_elements=2,
        num_features=CHANNELS,
        basis="full",
        precision="float64",
    )
    ours = SymmetricContraction(descriptor, "auto")
    weights = {
        degree: [[*reversed(part.weights), part.weights_max][degree - 1] for part in parts.values()]
        for degree in range(1, CORRELATION + 1)
    }
    ordered = [weight for degree in weights for weight in weights[degree]]
    counts = torch.tensor([weight.shape[1] for weight in ordered])
    ours.load_canonical({"weight": torch.cat(ordered, dim=1).detach(), "path_counts": counts})

    element = torch.tensor([0, 1, 1, 0])
    x = torch.randn(4, CHANNELS, 16, requires_grad=True)
    mine = ours(x, element)
    expected = theirs(x, torch.eye(2)[element])  # rows of irreps in layout "mul_ir"
    scalars, vectors = expected[:, :CHANNELS], expected[:, CHANNELS:].view(4, CHANNELS, 3)
    expected = torch.cat([scalars[..., None], vectors], dim=2)
    assert float((mine - expected).abs().max() / expected.abs().max()) < TOLERANCES["values"]

    def gradients(out: torch.Tensor, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        (force,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
        return [force, *torch.autograd.grad(force.square().sum(), parameters)]

    found, wanted = gradients(mine, [ours.weight]), gradients(expected, ordered)
    for a, b in ((found[0], wanted[0]), (found[1], torch.cat(wanted[1:], dim=1))):
        assert float((a - b).abs().max() / b.abs().max()) < TOLERANCES["gradients"]
