"""Phases and learning rates."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from eqtp.models.training.config import TrainingConfig
from eqtp.models.training.schedule import Schedule


def schedule(**training: Any) -> Schedule:
    defaults = {"lr": 0.1, "max_epochs": 10, "scheduler": {"kind": "constant"}}
    return Schedule(TrainingConfig.model_validate(defaults | training), steps_per_epoch=4)


def test_a_phase_sets_weights_and_rate_from_its_first_epoch() -> None:
    phases = [{"start": 0}, {"start": 0.5, "energy_weight": 1000.0, "lr": 0.001}]
    two = schedule(phases=phases)
    assert [two.phase_index(epoch) for epoch in range(10)] == [0] * 5 + [1] * 5
    assert two.phase(4).energy_weight == 1
    assert two.phase(5).energy_weight == 1000
    assert two.lr(4, 3) == 0.1
    assert two.lr(5, 0) == 0.001


def test_exponential_falls_by_gamma_each_epoch() -> None:
    rates = schedule(scheduler={"kind": "exponential", "gamma": 0.5})
    assert [rates.lr(epoch, 2) for epoch in range(3)] == [0.1, 0.05, 0.025]


def test_cosine_falls_step_by_step_over_its_phase() -> None:
    rates = schedule(scheduler={"kind": "cosine", "final": 0.0})
    values = [rates.lr(epoch, batch) for epoch in range(10) for batch in range(4)]
    assert values[0] == 0.1
    assert values[20] == pytest.approx(0.05)
    assert all(a > b > 0 for a, b in itertools.pairwise(values))
    assert values[-1] < 0.001


def test_warmup_rises_linearly() -> None:
    rates = schedule(scheduler={"kind": "constant", "warmup_steps": 3})
    values = [rates.lr(0, batch) for batch in range(4)] + [rates.lr(1, 0)]
    assert values == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_plateau_waits_for_patience_and_survives_a_state_dict() -> None:
    rates = schedule(scheduler={"kind": "plateau", "factor": 0.5, "patience": 2})
    for epoch, loss in enumerate([3.0, 2.0, 2.0, 2.5]):
        rates.on_validation(epoch, loss)
    assert rates.lr(4, 0) == 0.1
    resumed = schedule(scheduler={"kind": "plateau", "factor": 0.5, "patience": 2})
    resumed.load_state_dict(rates.state_dict())
    resumed.on_validation(4, 2.0)
    assert resumed.lr(5, 0) == 0.05


def test_a_phase_that_sets_weights_only_leaves_the_rate_alone() -> None:
    phases = [{"start": 0}, {"start": 5, "energy_weight": 1000.0}, {"start": 8, "lr": 0.5}]
    rates = schedule(scheduler={"kind": "cosine"}, phases=phases)
    one = schedule(scheduler={"kind": "cosine"}, max_epochs=8)
    assert [rates.lr(e, b) for e in range(8) for b in range(4)] == [
        one.lr(e, b) for e in range(8) for b in range(4)
    ]
    assert rates.lr(8, 0) == 0.5


def test_a_plateau_goes_on_with_its_rate_and_forgets_the_losses_of_other_weights() -> None:
    phases = [{"start": 0}, {"start": 5, "energy_weight": 1000.0}]
    scheduler = {"kind": "plateau", "factor": 0.5, "patience": 1}
    rates = schedule(phases=phases, scheduler=scheduler)
    for epoch in range(5):
        rates.on_validation(epoch, 1.0)
    rates.on_validation(5, 50.0)
    rates.on_validation(6, 51.0)
    assert [rates.lr(epoch, 0) for epoch in (4, 5, 7)] == [0.025, 0.025, 0.025]
    rates.on_validation(7, 51.0)
    assert rates.lr(8, 0) == 0.0125


def test_a_new_rate_starts_a_new_plateau() -> None:
    phases = [{"start": 0}, {"start": 5, "energy_weight": 1000.0, "lr": 0.1}]
    scheduler = {"kind": "plateau", "factor": 0.5, "patience": 1}
    rates = schedule(phases=phases, scheduler=scheduler)
    for epoch in range(5):
        rates.on_validation(epoch, 1.0)
    assert rates.lr(4, 0) == 0.025
    assert rates.lr(5, 0) == 0.1
    rates.on_validation(5, 50.0)
    assert rates.lr(6, 0) == 0.1
