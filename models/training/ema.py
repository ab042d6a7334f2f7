"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage(nn.Module):
    """Keeps averaged <- d averaged + (1 - d) weights, d = min(decay, (1 + n) / (10 + n)).

    n counts the updates: early averages forget the random start quickly, as in torch-ema, which
    MACE uses. The average is a copy of the model that can be evaluated like it.

    Attributes:
        model: The copy with averaged weights; they take no gradient.
        num_updates: n.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes one step towards the weights of `model`; buffers are constants in our models."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for average, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)
