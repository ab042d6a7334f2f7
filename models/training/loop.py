"""Training with Lightning's Trainer, from the start or from a checkpoint."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eqtp.models.training.batches import Position, TrainingBatches, evaluation_batches
from eqtp.models.training.checkpoint import RunDirectory
from eqtp.models.training.config import Config, TrainingConfig
from eqtp.models.training.lightning_module import TrainingModule
from eqtp.models.training.path_gating import add_gates
from eqtp.models.training.progress import Progress
from eqtp.models.training.recorder import Recorder
from eqtp.models.training.sampler import EdgeBalancedBatchSampler
from eqtp.models.training.structure import Structure


def fit(
    model: nn.Module,
    train: Sequence[Structure],
    valid: Sequence[Structure],
    config: Config,
    run: RunDirectory,
    state: dict[str, Any] | None = None,
) -> Trainer:
    """Trains until `max_epochs` or `max_time`; the results are the files of the run.

    Args:
        model: With its initial weights; ends with the last raw ones. With `training.path_gate` it
            gets its gates here.
        train: Training structures.
        valid: Validation structures.
        config: The resolved config.
        run: Where metrics and checkpoints go.
        state: A checkpoint to go on from.
    """
    training = config.training
    position = Position(**state["position"]) if state else Position()
    recorder = Recorder(config, run, describe(model), state)
    trainer = make_trainer(
        training,
        max_epochs=training.max_epochs - position.epoch,
        callbacks=[recorder, Progress(recorder)],
    )
    rank, world_size = trainer.global_rank, trainer.world_size
    sampler = EdgeBalancedBatchSampler(
        [structure.edge_src.shape[0] for structure in train],
        training.batch_size,
        seed=training.seed,
        rank=rank,
        world_size=world_size,
    )
    add_gates(
        model,
        training.path_gate,
        max_epochs=training.max_epochs,
        steps_per_epoch=len(sampler),
        seed=training.seed,
    )
    module = TrainingModule(
        model,
        training,
        TrainingBatches(train, sampler, position),
        evaluation_batches(
            [valid[i] for i in range(rank, len(valid), world_size)], training.evaluation_batch_size
        ),
    )
    if state:
        module.load_training_state(state)
    if position.epoch < training.max_epochs and not recorder.out_of_time:
        trainer.fit(module)
    return trainer


def describe(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint says about the model, enough to build it again."""
    return {"class": type(model).__name__, "hyperparameters": model.hyperparameters}


def make_trainer(training: TrainingConfig, *, max_epochs: int, callbacks: list[Any]) -> Trainer:
    """A Trainer that does the loop and the processes, and leaves files to our callbacks."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for noise in (".*GPU available but not used.*", ".*LeafSpec.*is deprecated.*"):
        warnings.filterwarnings("ignore", message=noise)
    torch.set_float32_matmul_precision(training.matmul_precision)
    if training.num_threads is not None:
        torch.set_num_threads(training.num_threads)
    several = training.devices != 1 or training.num_nodes > 1
    strategy: Any = training.strategy
    if strategy == "ddp" or (strategy == "auto" and several):
        strategy = _ddp_strategy()
    try:
        return Trainer(
            accelerator=training.accelerator,
            devices=training.devices,
            num_nodes=training.num_nodes,
            strategy=strategy,
            max_epochs=max_epochs,
            gradient_clip_val=training.clip_grad_norm,
            callbacks=callbacks,
            use_distributed_sampler=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        raise ValueError(
            f"training.accelerator={training.accelerator!r}, devices={training.devices!r}, "
            f"strategy={training.strategy!r} must fit this machine, got: {error}"
        ) from error


def _ddp_strategy() -> DDPStrategy:
    """DDP that does not send buffers with every step: here they are constants."""
    known = inspect.signature(DistributedDataParallel).parameters
    if "forward_sync_buffers" in known:  # torch >= 2.13, which deprecates the other name
        return DDPStrategy(forward_sync_buffers=False)
    return DDPStrategy(broadcast_buffers=False)
