"""A progress bar over the whole run, and one line for each validation."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from eqtp.models.training.lightning_module import TrainingModule
from eqtp.models.training.recorder import Recorder

# Where the output is no terminal (a log file), lines come at most this often.
_SECONDS_BETWEEN_LINES = 5.0


class Progress(Callback):
    """Shows epoch, errors and the time left on the first process.

    Args:
        recorder: Whose rows are shown; it must come before this callback.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._printed_at = -_SECONDS_BETWEEN_LINES
        self._shown: dict[str, float] = {}
        self._bar: Any = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Opens the bar."""
        assert isinstance(module, TrainingModule)
        self._first_step, self._started = module.position.step, time.monotonic()
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=module.batches.per_epoch * self.recorder.config.training.max_epochs,
                initial=module.position.step,
                unit="step",
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}",
            )

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        if self._bar is not None and not self._bar.disable:
            assert isinstance(module, TrainingModule)
            self._bar.set_description(f"epoch {module.position.epoch + 1}", refresh=False)
            self._bar.set_postfix_str(f"{_clock(self._left(module))} left", refresh=False)
            self._bar.update()

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Prints a line where a validation has taken place."""
        assert isinstance(module, TrainingModule)
        row = self.recorder.latest
        if self._bar is None or not row or row is self._shown:
            return
        self._shown = row
        last = trainer.should_stop or row["epoch"] == self.recorder.config.training.max_epochs
        now = time.monotonic()
        if self._bar.disable and not last and now - self._printed_at < _SECONDS_BETWEEN_LINES:
            return
        self._printed_at = now
        best = " *" if self.recorder.best["epoch"] == row["epoch"] else ""
        line = f"epoch {row['epoch']:4.0f}/{self.recorder.config.training.max_epochs}"
        line += f"  loss {row['train_loss']:.3e}  valid {row['valid_loss']:.3e}"
        if "valid_per_atom_rmse" in row:
            line += f"  E {row['valid_per_atom_rmse']:7.2f} meV/atom"
        if "valid_forces_rmse" in row:
            line += f"  F {row['valid_forces_rmse']:7.1f} meV/Å"
        for name in module.targets:
            if f"valid_{name}_rmse" in row:
                line += f"  {name} {row[f'valid_{name}_rmse']:.3g}"
        line += f"  lr {row['lr']:.1e}  {_clock(self._left(module))} left{best}"
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def _left(self, module: TrainingModule) -> float:
        """Seconds to the end of the run at the pace so far, or to its time limit."""
        training = self.recorder.config.training
        done = module.position.step - self._first_step
        total = module.batches.per_epoch * training.max_epochs
        pace = (time.monotonic() - self._started) / max(done, 1)
        left = pace * (total - module.position.step)
        if training.max_time is not None:
            left = min(left, 60 * training.max_time - self.recorder.seconds)
        return max(left, 0.0)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Says how to go on, after Ctrl-C for example."""
        if self._bar is not None:
            self._bar.close()
            print(f"stopped; go on with: eqtp train --resume {self.recorder.run.path}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
