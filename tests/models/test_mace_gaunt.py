"""MACE with products of functions on the sphere: symmetries, training, files, and the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule
from potential_checks import SETTINGS, check_loss_gradients
from torch import Tensor

from eqtp.models import MACE, load, save
from eqtp.models.training.config import parse_config
from eqtp.models.training.data import from_ase
from eqtp.so3 import rand_matrix

TOLERANCES = {
    "symmetry": 1e-10,  # relative; sums of a few thousand terms in float64
    "difference": 1e-5,  # relative, of central differences with steps of 1e-5
}
PRODUCTS = ("gaunt", "gaunt_iterated")
MODEL_SETTINGS = SETTINGS["MACE"] | {"correlation": 3}


def make(**changes: Any) -> MACE:
    torch.manual_seed(0)
    model = MACE(**{**MODEL_SETTINGS, **changes}).double().eval()
    for block in model.products.modules():  # weights that are 1 at first could hide an order
        for weight in getattr(block, "weights", []):
            torch.nn.init.normal_(weight)
    return model


def ethanol(positions: Tensor | None = None) -> Any:
    atoms = molecule("CH3CH2OH")
    if positions is not None:
        atoms.positions = positions.numpy()
    return from_ase(atoms, 4.0, dtype=torch.float64)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("improper", [False, True])
def test_rotation_and_inversion(product: str, improper: bool) -> None:
    model, data = make(product=product), ethanol()
    rotation = rand_matrix() * (-1 if improper else 1)
    before, after = model(data), model(ethanol(data.positions @ rotation.T))
    for actual, expected in (
        (after["node_energy"], before["node_energy"]),
        (after["forces"], before["forces"] @ rotation.T),
    ):
        scale = float(expected.abs().max())
        assert scale > 1e-3
        atol = TOLERANCES["symmetry"] * scale
        torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("product", PRODUCTS)
def test_force_loss_gradient(product: str) -> None:
    """The gradient of a force loss in the product's weights, against differences of the loss."""
    model, data = make(product=product).train(), ethanol()
    target = torch.randn(len(data.positions), 3)

    def loss() -> Tensor:
        error: Tensor = (model(data)["forces"] - target).square().sum()
        return error

    check_loss_gradients(loss, model.products, TOLERANCES["difference"])


@pytest.mark.parametrize("product", PRODUCTS)
def test_equals_cg_with_effective_weights(product: str) -> None:
    gaunt, cg = make(product=product), make(product="cg")
    state = gaunt.state_dict()
    for key, value in cg.state_dict().items():
        if "symmetric_contractions" not in key:
            value.copy_(state[key])
    ours: Any
    theirs: Any
    for ours, theirs in zip(cg.products, gaunt.products, strict=True):
        weights = theirs.symmetric_contractions.independent_weights()
        sizes = [weight.shape[1] for weight in ours.symmetric_contractions.weights]
        pieces = weights.split(sizes, dim=1)
        for weight, piece in zip(ours.symmetric_contractions.weights, pieces, strict=True):
            weight.data.copy_(piece)
    expected = gaunt(ethanol())["forces"]
    atol = TOLERANCES["symmetry"] * float(expected.abs().max())
    torch.testing.assert_close(cg(ethanol())["forces"], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_product_is_part_of_the_model_file(product: str, tmp_path: Path) -> None:
    model = make(product=product)
    assert model.hyperparameters["product"] == product
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.hyperparameters == model.hyperparameters
    assert torch.equal(again(ethanol())["energy"], model(ethanol())["energy"])
    decayed = {id(parameter) for parameter in model.weight_decay_parameters()}
    assert decayed.issuperset(id(parameter) for parameter in model.products.parameters())


def test_the_config_has_the_product() -> None:
    raw = {"data": {"name": "3bpa"}, "model": {"product": "gaunt_iterated"}}
    assert parse_config(raw, source="here").model.model_dump()["product"] == "gaunt_iterated"
    with pytest.raises(ValueError, match="product"):
        parse_config({"data": {"name": "3bpa"}, "model": {"product": "grid"}}, source="here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"product": "grid"}, r"product must be one of \('cg', 'gaunt', 'gaunt_iterated'\)"),
        ({"product": "gaunt", "basis": "mace"}, "basis='mace' needs product='cg'"),
        ({"product": "gaunt", "hidden_irreps": "4x0e+4x1e"}, "natural parity .* 'cg'"),
    ],
)
def test_bad_hyperparameters(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
