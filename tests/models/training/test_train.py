"""Training in this process: it learns, it records, and an interruption leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from torch import Tensor, nn

from eqtp.models.training.checkpoint import RunDirectory, read_checkpoint
from eqtp.models.training.config import Config
from eqtp.models.training.data import StructureDataset
from eqtp.models.training.lightning_module import TrainingModule, evaluate_sums
from eqtp.models.training.loop import fit, make_trainer
from eqtp.models.training.metrics_log import read_metrics

TOLERANCES = {"rows": 1e-10}  # the bar for resumed runs; the same operations run in both

Rows = list[dict[str, float]]
Train = Callable[..., tuple[nn.Module, RunDirectory]]


@pytest.fixture
def train(
    frames: Callable[[int], list[Atoms]],
    make_config: Callable[..., Config],
    pair_potential: type[nn.Module],
    tmp_path: Path,
) -> Train:
    """Trains a fresh pair potential in `tmp_path / name`, or goes on with the run there."""
    structures = list(StructureDataset(frames(16), 3.0))

    def run(name: str, *, resume: bool = False, **training: Any) -> tuple[nn.Module, RunDirectory]:
        torch.manual_seed(1)
        model = pair_potential(atomic_numbers=[1, 8])
        if resume:
            folder = RunDirectory(tmp_path / name)
            state, _ = folder.read_latest()
        else:
            folder, state = RunDirectory.create(tmp_path / name), None
        steps = training.pop("interval_steps", None)
        config = make_config(**training)
        saving = config.checkpoint.model_copy(update={"interval_steps": steps})
        config = config.model_copy(update={"checkpoint": saving})
        fit(model, structures[:11], structures[11:], config, folder, state)
        return model, folder

    return run


class Interrupted(Exception):
    """Stands for a process that ends at once."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Lets training die within the given optimiser step."""
    original = TrainingModule.training_step

    def at(step: int) -> None:
        def training_step(self: TrainingModule, batch: Any, batch_idx: int) -> Tensor:
            if self.position.step == step:
                raise Interrupted
            return original(self, batch, batch_idx)

        monkeypatch.setattr(TrainingModule, "training_step", training_step)

    yield at
    monkeypatch.undo()


def comparable(run: RunDirectory) -> Rows:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run)]


def assert_same_rows(a: RunDirectory, b: RunDirectory) -> None:
    rows_a, rows_b = comparable(a), comparable(b)
    assert len(rows_a) == len(rows_b)
    for row_a, row_b in zip(rows_a, rows_b, strict=True):
        assert row_a == pytest.approx(row_b, rel=TOLERANCES["rows"], abs=0)


def test_training_learns_and_writes_its_files(train: Train) -> None:
    _, run = train("run", max_epochs=30)
    rows = read_metrics(run)
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    assert rows[-1]["step"] == 30 * 4
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert rows[-1]["valid_loss"] < 0.5 * rows[0]["valid_loss"]
    assert list(run.path.glob("events.out.tfevents.*"))
    assert run.last.is_file()
    assert run.previous.is_file()


def test_best_holds_the_averaged_weights_with_the_lowest_validation_loss(
    train: Train, pair_potential: type[nn.Module], frames: Callable[[int], list[Atoms]]
) -> None:
    _, run = train("run", max_epochs=12, lr=0.1)
    best = read_checkpoint(run.best)
    rows = read_metrics(run)
    lowest = min(rows, key=lambda row: row["valid_loss"])
    assert best["recorder"]["best"]["epoch"] == lowest["epoch"]
    model = pair_potential(atomic_numbers=[1, 8])
    model.load_state_dict(best["ema"])
    valid = StructureDataset(frames(16)[11:], 3.0)
    sums = evaluate_sums(model, valid, torch.device("cpu"))
    forces_rmse = 1000 * (sums[6] / sums[5]) ** 0.5
    assert float(forces_rmse) == pytest.approx(lowest["valid_forces_rmse"], rel=1e-12)
    raw = best["model"]["radial.weight"]
    assert not torch.allclose(raw, best["ema"]["radial.weight"], rtol=1e-3)


@pytest.mark.parametrize("step", [0, 9, 20, 30])
def test_a_run_that_died_goes_on_exactly(
    step: int, train: Train, interrupt: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, Any] = {
        "max_epochs": 10,
        "lr": 1.0,  # so large that the loss does not fall steadily, which the plateau answers
        "interval_steps": 3,
        "eval_interval": 2,
        "scheduler": {"kind": "plateau", "patience": 1, "factor": 0.5},
        "phases": [{"start": 0}, {"start": 8, "energy_weight": 50.0}],
    }
    model, whole = train("whole", **recipe)
    assert {row["lr"] for row in read_metrics(whole)} >= {1.0, 0.5}
    interrupt(step)
    with pytest.raises(Interrupted):
        train("parts", **recipe)
    monkeypatch.undo()
    resumed, parts = train("parts", resume=True, **recipe)
    assert_same_rows(whole, parts)
    for expected, weight in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-10, atol=1e-12)


def test_a_broken_last_checkpoint_costs_one_interval(
    train: Train, interrupt: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, Any] = {"max_epochs": 4, "interval_steps": 2}
    _, whole = train("whole", **recipe)
    interrupt(11)
    with pytest.raises(Interrupted):
        train("parts", **recipe)
    monkeypatch.undo()
    run = RunDirectory(whole.path.parent / "parts")
    run.last.write_bytes(run.last.read_bytes()[:-100])
    _, parts = train("parts", resume=True, **recipe)
    assert_same_rows(whole, parts)


def test_a_run_out_of_time_stops_and_goes_on_as_if_it_never_had(train: Train) -> None:
    _, whole = train("whole", max_epochs=4)
    _, parts = train("parts", max_epochs=4, max_time=1e-6)
    assert len(read_metrics(parts)) == 1
    assert read_checkpoint(parts.best)["position"]["step"] == 1
    train("parts", resume=True, max_epochs=4, max_time=1e-6)
    assert read_checkpoint(parts.last)["position"]["step"] == 1  # still out of time
    train("parts", resume=True, max_epochs=4)
    assert_same_rows(whole, parts)


def test_a_finished_run_is_left_as_it_is(train: Train) -> None:
    _, run = train("run", max_epochs=2)
    before = run.metrics.read_bytes()
    train("run", resume=True, max_epochs=2)
    assert run.metrics.read_bytes() == before


def test_training_without_forces(train: Train) -> None:
    _, run = train("run", phases=[{"forces_weight": 0}])
    rows = read_metrics(run)
    assert "train_forces_rmse" not in rows[0]
    assert rows[0]["valid_forces_rmse"] > 0  # still reported
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"]


def test_a_loss_that_is_not_finite_ends_training_with_the_remedy(
    train: Train, pair_potential: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pair_potential.forward

    def forward(self: nn.Module, data: Any, **options: bool) -> dict[str, Tensor]:
        output: dict[str, Tensor] = original(self, data, **options)
        return output | {"energy": output["energy"] * torch.inf}

    monkeypatch.setattr(pair_potential, "forward", forward)
    with pytest.raises(FloatingPointError, match=r"finite.*lower training\.lr"):
        train("run")


def test_weight_decay_acts_on_the_named_weights_only(
    pair_potential: type[nn.Module], make_config: Callable[..., Config]
) -> None:
    model = pair_potential(atomic_numbers=[1, 8])
    module = TrainingModule.__new__(TrainingModule)
    nn.Module.__init__(module)
    module.model = model
    module.training_config = make_config(weight_decay=0.125).training
    groups = module.configure_optimizers().param_groups
    assert [group["weight_decay"] for group in groups] == [0.125, 0.0]
    assert [len(group["params"]) for group in groups] == [1, 5]
    assert groups[0]["params"][0] is model.get_parameter("radial.weight")
    assert all(group["amsgrad"] for group in groups)


def test_more_processes_than_frames_is_refused(
    frames: Callable[[int], list[Atoms]],
    make_config: Callable[..., Config],
    pair_potential: type[nn.Module],
    tmp_path: Path,
) -> None:
    structures = list(StructureDataset(frames(2), 3.0))
    with pytest.raises(ValueError, match="3 ranks"):
        fit(
            pair_potential(atomic_numbers=[1, 8]),
            structures,
            structures,
            make_config(devices=3),
            RunDirectory.create(tmp_path / "run"),
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the accelerator")
def test_a_machine_without_the_accelerator_is_named(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=r"training\.accelerator='gpu'.*must fit this machine"):
        make_trainer(make_config(accelerator="gpu").training, max_epochs=1, callbacks=[])
