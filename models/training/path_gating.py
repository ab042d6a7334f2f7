"""Learned path sparsity in a training: what a config says, and what the loop does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import nn

import eqtp
from eqtp.models.blocks.path_gates import ConvolutionGate, gate_paths, path_gates
from eqtp.models.training.model_config import Section

__all__ = ["PathGateConfig", "add_gates", "refuse_pair_gate", "set_gates"]


class PathGateConfig(Section):
    """SPHNet's learned sparsity of paths, for MACE; see `eqtp.PathGate`.

    Attributes:
        keep: Share of the paths of each layer's convolution that stay.
        random_epochs: Length of the phase with random sets of paths: a fraction of `max_epochs`
            below 1, or a number of epochs.
        top_epochs: Length of the phase with the paths of the highest scores, likewise; then they
            are frozen, and training and the saved model run on these paths only.
    """

    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    random_epochs: Annotated[float, Field(ge=0)] = 0.15
    top_epochs: Annotated[float, Field(ge=0)] = 0.05

    @model_validator(mode="before")
    @classmethod
    def _no_pairs(cls, given: Any) -> Any:
        return refuse_pair_gate(given, ("pairs", "pair_gate"))


def refuse_pair_gate(given: Any, keys: Sequence[str] = ("pair_gate",)) -> Any:
    """Passes a section on unless it asks for SPHNet's gate on pairs of atoms.

    Raises:
        ValueError: with the reason why force fields do not have it.
    """
    if isinstance(given, dict) and any(key in given for key in keys):
        try:
            eqtp.PairGate  # noqa: B018
        except AttributeError as error:
            raise ValueError(str(error)) from error
    return given


def add_gates(
    model: nn.Module,
    config: PathGateConfig | None,
    *,
    max_epochs: int,
    steps_per_epoch: int,
    seed: int,
) -> None:
    """Puts the gates of a config on a model, unless it has them."""
    if config is None or path_gates(model):
        return

    def steps(epochs: float) -> int:
        return round((epochs * max_epochs if epochs < 1 else epochs) * steps_per_epoch)

    random_steps, top_steps = steps(config.random_epochs), steps(config.top_epochs)
    gate_paths(model, config.keep, random_steps=random_steps, top_steps=top_steps, seed=seed)


def set_gates(
    gates: Sequence[ConvolutionGate], averages: Sequence[ConvolutionGate], step: int
) -> None:
    """Tells the gates of a model the step; those of its average keep the same paths."""
    for gate, average in zip(gates, averages, strict=True):
        gate.set_step(step)
        average.set_extra_state(gate.get_extra_state())
