"""Error sums: losses, metrics, and that they add up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor

from eqtp.models.training.batches import collate
from eqtp.models.training.config import PhaseConfig
from eqtp.models.training.data import StructureDataset
from eqtp.models.training.errors import error_sums, loss, metrics
from eqtp.models.training.structure import Structure

PHASE = PhaseConfig(energy_weight=2.0, forces_weight=30.0)
TOLERANCES = {"rtol": 1e-13}  # a few float64 roundings


@pytest.fixture
def structures(frames: Callable[[int], list[Atoms]]) -> list[Structure]:
    made = frames(5)
    labels = made[4].calc.results
    made[4] = made[4][:2]  # sizes differ, so "per atom" matters
    made[4].calc = SinglePointCalculator(
        made[4], energy=labels["energy"], forces=labels["forces"][:2]
    )
    return list(StructureDataset(made, 3.0))


def predict(batch: Structure, seed: int = 3) -> dict[str, Tensor]:
    """Deterministic wrong answers that do not depend on the rest of the batch."""
    energy = batch.energy + torch.sin(1e3 * batch.energy + seed)
    return {"energy": energy, "forces": batch.forces + torch.cos(seed * batch.positions)}


@pytest.mark.parametrize("kind", ["mace", "paper"])
def test_loss_is_the_published_formula(kind: str, structures: list[Structure]) -> None:
    batch = collate(structures)
    output = predict(batch)
    sums = error_sums(output, batch)
    error = output["energy"] - batch.energy
    if kind == "mace":
        error = error / torch.tensor([3.0, 3, 3, 3, 2])
    expected = 2 * error.square().mean()
    expected = expected + 30 * (output["forces"] - batch.forces).square().mean()
    torch.testing.assert_close(
        loss(sums, PHASE, kind, sums), expected, rtol=TOLERANCES["rtol"], atol=0.0
    )


def test_sums_and_gradients_of_parts_add_up(structures: list[Structure]) -> None:
    shift = torch.zeros(3, requires_grad=True)

    def sums_of(part: list[Structure]) -> Tensor:
        batch = collate(part)
        output = predict(batch)
        return error_sums({"energy": output["energy"], "forces": output["forces"] + shift}, batch)

    whole = sums_of(structures)
    parts = [sums_of(structures[:1]), sums_of(structures[1:])]
    totals = torch.stack(parts).sum(0).detach()
    torch.testing.assert_close(totals, whole.detach(), rtol=TOLERANCES["rtol"], atol=0.0)
    (expected,) = torch.autograd.grad(loss(whole, PHASE, "mace", whole), shift)
    split = torch.stack([loss(part, PHASE, "mace", totals) for part in parts]).sum()
    (gradient,) = torch.autograd.grad(split, shift)
    torch.testing.assert_close(gradient, expected, rtol=TOLERANCES["rtol"], atol=0.0)


def test_metrics_have_the_units_they_claim(structures: list[Structure]) -> None:
    batch = collate(structures)
    output = {"energy": batch.energy + 0.06, "forces": batch.forces - 0.02}
    values = metrics(error_sums(output, batch))
    assert values["energy_rmse"] == pytest.approx(60)
    assert values["energy_mae"] == pytest.approx(60)
    assert values["per_atom_mae"] == pytest.approx((4 * 20 + 30) / 5)
    assert values["forces_rmse"] == pytest.approx(20)
    assert "stress_rmse" not in values


def test_what_is_not_computed_or_not_labelled_counts_nothing(structures: list[Structure]) -> None:
    batch = collate(structures)
    sums = error_sums({"energy": batch.energy, "stress": torch.zeros(5, 3, 3)}, batch)
    assert set(metrics(sums)) == {"energy_rmse", "energy_mae", "per_atom_rmse", "per_atom_mae"}
    assert loss(sums, PHASE, "mace", sums) == 0


def test_float32_models_lose_nothing_in_the_sums(structures: list[Structure]) -> None:
    batch = collate(structures)
    output = {"energy": batch.energy, "forces": batch.forces.float()}
    batch.forces = batch.forces.float()
    assert error_sums(output, batch).dtype == torch.float64


def test_collation_equals_that_of_torch_geometric(structures: list[Structure]) -> None:
    from torch_geometric.data import Batch

    ours, theirs = collate(structures), Batch.from_data_list(structures)
    for key, value in ours.to_dict().items():
        expected = theirs[key]
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected)), key
