"""What one training step does, as a LightningModule: loss, optimiser, averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from eqtp.models.blocks.path_gates import path_gates
from eqtp.models.training.batches import TrainingBatches
from eqtp.models.training.checkpoint import random_states, set_random_states
from eqtp.models.training.config import PhaseConfig, TrainingConfig
from eqtp.models.training.ema import ExponentialMovingAverage
from eqtp.models.training.errors import error_sums, fields, loss
from eqtp.models.training.path_gating import set_gates
from eqtp.models.training.schedule import Schedule
from eqtp.models.training.structure import Structure
from eqtp.models.training.targets import targets_of


class TrainingModule(LightningModule):
    """Trains a potential on energies, forces and stresses.

    The loss of a step is a mean over the frames and components of the whole batch, whichever
    processes they are on: gradients under DDP equal those of one process with the whole batch.

    Args:
        model: A potential as in `eqtp.models`.
        training: The recipe.
        batches: Training batches of this process; their position is moved by each step.
        valid: Validation batches of this process.
    """

    def __init__(
        self,
        model: nn.Module,
        training: TrainingConfig,
        batches: TrainingBatches,
        valid: Sequence[Structure],
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.ema = ExponentialMovingAverage(model, training.ema_decay)
        self.training_config = training
        self.batches = batches
        self.position = batches.position
        self.valid = valid
        self.schedule = Schedule(training, batches.per_epoch)
        self.sums: Tensor
        self.gates = (path_gates(model), path_gates(self.ema.model))
        self.targets = tuple(targets_of(model))
        self.register_buffer("sums", torch.zeros(len(fields(self.targets)), dtype=torch.float64))
        self._pending: dict[str, Any] | None = None

    @property
    def phase(self) -> PhaseConfig:
        """The phase of the next step."""
        return self.schedule.phase(self.position.epoch)

    @property
    def epoch_is_complete(self) -> bool:
        """Whether the last batch of the epoch has been trained on."""
        return self.position.batch == self.batches.per_epoch

    def train_dataloader(self) -> Iterable[Structure]:
        """The batches of an epoch, from the position on."""
        return self.batches

    def training_step(self, batch: Structure, batch_idx: int) -> Tensor:
        """Loss of a batch; DDP's mean over processes is turned into the mean over frames."""
        phase = self.phase
        set_gates(*self.gates, self.position.step)
        output = self.model(
            batch,
            compute_forces=phase.forces_weight > 0,
            compute_stress=phase.stress_weight > 0,
        )
        sums = error_sums(output, batch, self.targets)
        totals = self._sum_over_processes(sums.detach())
        self.sums += totals
        kind, scale = self.training_config.loss, self.trainer.world_size
        return scale * loss(sums, phase, kind, totals, self.targets)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the weights and of nothing else.

        The forces made the positions part of the graph; their gradient, which nobody reads, would
        cost a fifth of a step more.
        """
        loss.backward(inputs=[p for p in self.model.parameters() if p.requires_grad])

    def _sum_over_processes(self, sums: Float64[Tensor, " fields"]) -> Float64[Tensor, " fields"]:
        if self.trainer.world_size == 1:
            return sums
        totals = self.trainer.strategy.reduce(sums.clone(), reduce_op="sum")
        assert isinstance(totals, Tensor)
        return totals

    def configure_optimizers(self) -> Optimizer:
        """Adam with weight decay on the weights that the model names, and on no other."""
        training = self.training_config
        decayed = self.model.weight_decay_parameters()
        named = {id(parameter) for parameter in decayed}
        rest = [p for p in self.model.parameters() if id(p) not in named and p.requires_grad]
        groups = [
            {"params": decayed, "weight_decay": training.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        kind = AdamW if training.optimizer == "adamw" else Adam
        return kind(
            [group for group in groups if group["params"]],
            lr=training.lr,
            amsgrad=training.optimizer == "amsgrad",
            fused=True,  # one call for all weights: 0.1 ms a step where the loop takes 2 ms
        )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step at the scheduled rate; then the average and the position move along."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.lr(self.position.epoch, self.position.batch)
        optimizer.step(closure=optimizer_closure)
        self.ema.update(self.model)
        self.position.batch += 1
        self.position.step += 1

    def validate(self) -> Float64[Tensor, " fields"]:
        """Error sums of the averaged weights over the validation frames of all processes."""
        return self._sum_over_processes(evaluate_sums(self.ema.model, self.valid, self.device))

    def loss_of(self, sums: Float64[Tensor, " fields"], phase: PhaseConfig) -> float:
        """The loss that error sums amount to."""
        return float(loss(sums, phase, self.training_config.loss, sums, self.targets))

    def training_state(self) -> dict[str, Any]:
        """All that the next step depends on, ready to be written."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_updates": self.ema.num_updates,
            "optimizer": optimizer.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "position": vars(self.position).copy(),
            "phase": self.schedule.phase_index(self.position.epoch),
            "sums": self.sums,
            "random": random_states(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restores `training_state`; the optimiser's part waits until Lightning has made it."""
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.num_updates = state["ema_updates"]
        self.schedule.load_state_dict(state["schedule"])
        for name, value in state["position"].items():
            setattr(self.position, name, value)
        self.sums.copy_(state["sums"])
        self._pending = {"optimizer": state["optimizer"], "random": state["random"]}

    def on_train_start(self) -> None:
        """Restores what exists only now: the optimiser's moments and the random states."""
        if self._pending is not None:
            optimizer = self.optimizers()
            assert isinstance(optimizer, LightningOptimizer)
            optimizer.optimizer.load_state_dict(self._pending["optimizer"])
            set_random_states(self._pending["random"])
            self._pending = None


def evaluate_sums(
    model: nn.Module, batches: Iterable[Structure], device: torch.device
) -> Float64[Tensor, " fields"]:
    """Error sums of a model over labelled batches; forces are derivatives, so grad is on."""
    targets = tuple(targets_of(model))
    sums = torch.zeros(len(fields(targets)), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    for batch in batches:
        with torch.enable_grad():
            output = model(
                batch.to(device),
                compute_forces="forces" in batch,
                compute_stress="stress" in batch,
            )
        sums += error_sums(output, batch.to(device), targets).detach()
    model.train(was_training)
    return sums
