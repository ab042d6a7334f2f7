"""The batches of a run, from any position on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqtp.models.training.sampler import EdgeBalancedBatchSampler
from eqtp.models.training.structure import Structure


@dataclass
class Position:
    """Where training stands: the next batch of which epoch, and the optimiser steps so far."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


class TrainingBatches:
    """Iterates over what is left of the epoch that `position` stands in.

    It has no length for Lightning: the first epoch of a resumed run is shorter than the others.

    Args:
        frames: Structures.
        sampler: Their order.
        position: Where to go on; whoever trains moves it.
    """

    def __init__(
        self, frames: Sequence[Structure], sampler: EdgeBalancedBatchSampler, position: Position
    ) -> None:
        self.frames = frames
        self.sampler = sampler
        self.position = position
        self.per_epoch = len(sampler)

    def __iter__(self) -> Iterator[Structure]:
        self.sampler.resume_at(self.position.epoch, self.position.batch)
        for members in self.sampler:
            yield collate([self.frames[frame] for frame in members])


def evaluation_batches(frames: Sequence[Structure], batch_size: int) -> list[Structure]:
    """The frames in their order, joined into batches once."""
    return [
        collate([frames[i] for i in range(start, min(start + batch_size, len(frames)))])
        for start in range(0, len(frames), batch_size)
    ]


def collate(frames: Sequence[Structure]) -> Structure:
    """Joins structures into one graph with several components.

    The same tensors as `Batch.from_data_list`, which took 1.0 ms for five frames of 3BPA where
    this takes 0.25 ms: training collates in every step.
    """
    joined: dict[str, Any] = {"num_nodes": 0}
    columns: dict[str, list[Tensor]] = {
        key: [] for key in frames[0].to_dict() if key != "num_nodes"
    }
    for graph, frame in enumerate(frames):
        for key, column in columns.items():
            value = frame[key]
            if key in ("edge_src", "edge_dst"):
                value = value + joined["num_nodes"]
            elif key == "batch":
                value = value + graph
            column.append(value)
        joined["num_nodes"] += frame.num_nodes
    return Structure(**joined, **{key: torch.cat(column) for key, column in columns.items()})
