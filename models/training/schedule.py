"""Phases and learning rates as functions of the position in the run, never of the clock."""

from __future__ import annotations

import math
from typing import Any

from eqtp.models.training.config import PhaseConfig, TrainingConfig


class Schedule:
    """Which phase an epoch belongs to, and the learning rate of each step.

    Apart from the plateau's three numbers the rate is a pure function of epoch and step, so a
    resumed run continues exactly.

    Example:
        >>> training = TrainingConfig(lr=0.01, max_epochs=10, scheduler={"kind": "cosine"})
        >>> schedule = Schedule(training, steps_per_epoch=5)
        >>> schedule.lr(epoch=0, batch=0), round(schedule.lr(epoch=5, batch=0), 6)
        (0.01, 0.00505)
    """

    def __init__(self, training: TrainingConfig, steps_per_epoch: int) -> None:
        self.training = training
        self.steps_per_epoch = steps_per_epoch
        self.starts = training.phase_starts()
        self._plateau: dict[str, Any] = {"span": 0, "phase": 0, "reductions": 0}
        self._plateau |= {"best": math.inf, "waited": 0}

    def phase_index(self, epoch: int) -> int:
        """Index of the phase that `epoch` belongs to."""
        return sum(start <= epoch for start in self.starts) - 1

    def phase(self, epoch: int) -> PhaseConfig:
        """The phase that `epoch` belongs to."""
        return self.training.phases[self.phase_index(epoch)]

    def lr(self, epoch: int, batch: int) -> float:
        """Learning rate of the step on batch number `batch` of `epoch`."""
        index, start, end = self._span(epoch)
        phase = self.training.phases[index]
        scheduler = phase.scheduler or self.training.scheduler
        rate = phase.lr or self.training.lr
        step = (epoch - start) * self.steps_per_epoch + batch
        if scheduler.kind == "exponential":
            rate *= scheduler.gamma ** (epoch - start)
        elif scheduler.kind == "cosine":
            progress = step / ((end - start) * self.steps_per_epoch)
            cosine = 0.5 * (1 + math.cos(math.pi * progress))
            rate *= scheduler.final + (1 - scheduler.final) * cosine
        elif scheduler.kind == "plateau" and index == self._plateau["span"]:
            rate *= scheduler.factor ** self._plateau["reductions"]
        return rate * min(1.0, (step + 1) / (scheduler.warmup_steps + 1))

    def _span(self, epoch: int) -> tuple[int, int, int]:
        """Phase, first and last epoch (exclusive) of the schedule that `epoch` belongs to.

        A phase that sets neither rate nor schedule goes on with those of the phase before.
        """
        phases = list(zip(self.training.phases, self.starts, strict=True))
        new = [
            (index, start)
            for index, (phase, start) in enumerate(phases)
            if index == 0 or phase.lr is not None or phase.scheduler is not None
        ]
        index, start = [span for span in new if span[1] <= epoch][-1]
        later = [start for _, start in new if start > epoch]
        return index, start, later[0] if later else self.training.max_epochs

    def on_validation(self, epoch: int, loss: float) -> None:
        """Tells the plateau the validation loss reached after `epoch`."""
        span, phase = self._span(epoch)[0], self.phase_index(epoch)
        scheduler = self.training.phases[span].scheduler or self.training.scheduler
        plateau = self._plateau
        if span != plateau["span"]:
            plateau |= {"span": span, "reductions": 0}
        if phase != plateau["phase"]:  # losses of different phases have different weights
            plateau |= {"phase": phase, "best": math.inf, "waited": 0}
        if loss < plateau["best"]:
            plateau |= {"best": loss, "waited": 0}
            return
        plateau["waited"] += 1
        if plateau["waited"] > scheduler.patience:
            plateau |= {"waited": 0, "reductions": plateau["reductions"] + 1}

    def state_dict(self) -> dict[str, Any]:
        """What the past leaves behind."""
        return dict(self._plateau)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._plateau = dict(state)
