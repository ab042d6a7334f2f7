"""Validation, metrics, checkpoints and the time limit: what happens between training steps."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from eqtp.models.training.checkpoint import RunDirectory
from eqtp.models.training.config import Config
from eqtp.models.training.errors import metrics
from eqtp.models.training.lightning_module import TrainingModule
from eqtp.models.training.metrics_log import MetricsLog


class Recorder(Callback):
    """Validates the averaged weights, keeps the best, and writes down where training stands.

    Everything that decides about the trajectory comes from the position in the run; the clock
    only decides when a checkpoint is written and when training stops.

    Args:
        config: The resolved config.
        run: Where files go; only the first process writes.
        description: Stored in each checkpoint (the model's class and hyperparameters).
        state: The checkpoint to go on from.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        description: dict[str, Any],
        state: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.run = run
        self.description = description
        known = state["recorder"] if state else {}
        self.best: dict[str, Any] = known.get("best", {"phase": 0, "loss": math.inf, "epoch": -1})
        self.seconds_before: float = known.get("seconds", 0.0)
        self.rows: int = known.get("rows", 0)
        self.latest: dict[str, float] = {}
        self._log: MetricsLog | None = None
        self._started: float | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Starts the clock and opens the log."""
        assert isinstance(module, TrainingModule)
        self._started = self._saved_at = time.monotonic()
        self._saved_step = module.position.step
        if trainer.is_global_zero:
            self._log = MetricsLog(self.run, self.rows, module.position.step)

    @property
    def seconds(self) -> float:
        """Wall time of the whole run, earlier sessions included."""
        session = 0.0 if self._started is None else time.monotonic() - self._started
        return self.seconds_before + session

    @property
    def out_of_time(self) -> bool:
        """Whether the time limit is reached."""
        limit = self.config.training.max_time
        return limit is not None and self.seconds > 60 * limit

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the step, and saves or stops when it is time to."""
        assert isinstance(module, TrainingModule)
        step = module.position.step
        if step % self.config.training.log_interval == 0:
            self._check_finite(module)
            if self._log is not None:
                value = outputs["loss"] if isinstance(outputs, dict) else outputs
                assert isinstance(value, Tensor)
                lr = module.schedule.lr(module.position.epoch, module.position.batch - 1)
                self._log.write_scalars({"step_loss": float(value), "step_lr": lr}, step)
        if _any_process(trainer, self.out_of_time):
            trainer.should_stop = True
        elif _any_process(trainer, self._is_due(step)) and not module.epoch_is_complete:
            self._save_last(trainer, module)

    def _is_due(self, step: int) -> bool:
        steps = self.config.checkpoint.interval_steps
        minutes = self.config.checkpoint.interval_minutes
        return (steps is not None and step - self._saved_step >= steps) or (
            minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        )

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Validates where it is due, and moves on to the next epoch."""
        assert isinstance(module, TrainingModule)
        epoch, training = module.position.epoch, self.config.training
        complete = module.epoch_is_complete
        due = (epoch + 1) % training.eval_interval == 0 or epoch + 1 == training.max_epochs
        if complete:
            module.position.epoch, module.position.batch = epoch + 1, 0
        if complete and due:
            row = self._validate(module, epoch)
            module.schedule.on_validation(epoch, row["valid_loss"])
            module.sums.zero_()
            self._write_row(row)
            self._save(trainer, module, epoch, row)
        elif trainer.should_stop:
            # Out of time between two validations: the row and the best weights are written, but
            # a run that is resumed with more time goes on as if it had never stopped.
            row = self._validate(module, epoch)
            self._save(trainer, module, epoch, row)
            self._write_row(row)

    def _validate(self, module: TrainingModule, epoch: int) -> dict[str, float]:
        """The row of metrics after `epoch`."""
        self._check_finite(module)
        phase = module.schedule.phase(epoch)
        sums = module.validate()
        row: dict[str, float] = {
            "epoch": epoch + 1,
            "step": module.position.step,
            "seconds": round(self.seconds, 3),
            "phase": module.schedule.phase_index(epoch),
            "lr": module.schedule.lr(epoch, module.batches.per_epoch - 1),
            "train_loss": module.loss_of(module.sums, phase),
            "valid_loss": module.loss_of(sums, phase),
        }
        for name, values in (("train", module.sums), ("valid", sums)):
            row |= {
                f"{name}_{key}": value for key, value in metrics(values, module.targets).items()
            }
        self.latest = row
        return row

    def _write_row(self, row: dict[str, float]) -> None:
        if self._log is not None:
            self._log.write_row(row)
        self.rows += 1

    def _save(
        self, trainer: Trainer, module: TrainingModule, epoch: int, row: dict[str, float]
    ) -> None:
        """Writes `last`, and before it `best` if the row is the best of its phase."""
        phase = module.schedule.phase_index(epoch)
        improved = phase != self.best["phase"] or row["valid_loss"] < self.best["loss"]
        if improved:
            self.best = {"phase": phase, "loss": row["valid_loss"], "epoch": epoch + 1}
            if trainer.is_global_zero:
                self.run.write_best(self._state(module))
        self._save_last(trainer, module)

    def _save_last(self, trainer: Trainer, module: TrainingModule) -> None:
        self._check_finite(module)
        if trainer.is_global_zero:
            self.run.write_last(self._state(module))
        self._saved_at, self._saved_step = time.monotonic(), module.position.step

    def _state(self, module: TrainingModule) -> dict[str, Any]:
        recorder = {"best": self.best, "seconds": self.seconds, "rows": self.rows}
        return {
            **self.description,
            "config": self.config.model_dump(mode="json"),
            **module.training_state(),
            "recorder": recorder,
        }

    def _check_finite(self, module: TrainingModule) -> None:
        if not torch.isfinite(module.sums).all():
            raise FloatingPointError(
                f"the loss must stay finite, got a NaN or infinite one before step "
                f"{module.position.step} (epoch {module.position.epoch + 1}): lower training.lr "
                f"and start again, or resume from {self.run.path}, whose checkpoints are finite"
            )

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Closes the log."""
        if self._log is not None:
            self._log.close()


def _any_process(trainer: Trainer, decision: bool) -> bool:
    """Clocks differ: all processes act as soon as one wants to."""
    if trainer.world_size == 1:
        return decision
    return trainer.strategy.reduce_boolean_decision(decision, all=False)
