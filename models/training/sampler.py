"""Batches balanced by edges, the same for one process and for many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class EdgeBalancedBatchSampler(Sampler[list[int]]):
    """Deals the structures of every step to the ranks so that all have equally many edges.

    Each epoch is a permutation that depends on `(seed, epoch)` alone; step s takes its next
    `batch_size * world_size` structures. Within a step the structures go to the ranks largest
    first, each to the rank with the fewest edges so far that has room. The union over the ranks
    is therefore the batch of one process with `world_size` times the batch size.

    Where the structures do not divide evenly, the steps differ by one structure in size
    (instead of a last step with few structures, which would also leave ranks without work).

    Args:
        num_edges: edges of each structure.
        batch_size: structures per rank and step.
        shuffle: permute; otherwise the structures come in their own order.
        seed: of the permutations.
        drop_last: leave out the rest of the permutation that does not fill a step.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: for a batch size below 1, a rank outside the world, or fewer structures
            than ranks.

    Example:
        >>> sampler = EdgeBalancedBatchSampler([10, 10, 12, 20, 8], batch_size=2, seed=1)
        >>> sorted(index for batch in sampler for index in batch), len(sampler)
        ([0, 1, 2, 3, 4], 3)
    """

    def __init__(
        self,
        num_edges: Sequence[int],
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        per_step = batch_size * world_size
        steps = len(num_edges) // per_step
        if not drop_last and len(num_edges) % per_step:
            steps += 1
        if steps == 0 or len(num_edges) // steps < world_size:
            raise ValueError(
                f"every rank needs a structure in every step, got {len(num_edges)} structures "
                f"for {world_size} ranks with batch_size={batch_size}, drop_last={drop_last}; "
                "use fewer ranks, a larger batch_size, or drop_last where it is off"
            )
        self._num_edges = np.asarray(num_edges, dtype=np.int64)
        self._num_used = steps * per_step if drop_last else len(num_edges)
        self._num_steps = steps
        self._shuffle, self._seed = shuffle, seed
        self._rank, self._world_size = rank, world_size
        self._epoch = 0
        self._resume = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation of the next iteration."""
        self._epoch = epoch

    def resume_at(self, epoch: int, step: int) -> None:
        """Leaves out the first `step` batches of `epoch` (of that epoch only)."""
        if not 0 <= step <= self._num_steps:
            raise ValueError(f"step must be in 0..{self._num_steps}, got {step}")
        self._resume = (epoch, step)
        self._epoch = epoch

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self._num_steps

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self._num_edges))
        if self._shuffle:
            order = np.random.RandomState([self._seed, self._epoch]).permutation(order)
        resumed_epoch, step = self._resume
        first = step if resumed_epoch == self._epoch else 0
        for members in np.array_split(order[: self._num_used], self._num_steps)[first:]:
            yield self._share(members)

    def _share(self, members: np.ndarray) -> list[int]:
        """This rank's part of a step."""
        room = [len(part) for part in np.array_split(members, self._world_size)]
        edges = [0] * self._world_size
        share: list[int] = []
        for index in sorted(members.tolist(), key=lambda i: (-self._num_edges[i], i)):
            rank = min((r for r in range(self._world_size) if room[r]), key=edges.__getitem__)
            room[rank] -= 1
            edges[rank] += int(self._num_edges[index])
            if rank == self._rank:
                share.append(index)
        return share
