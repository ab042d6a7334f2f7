"""Batches: every structure once, balanced over ranks, the same for any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eqtp.models.training.sampler import EdgeBalancedBatchSampler

EDGES = np.random.default_rng(0).integers(100, 1000, 43).tolist()


def ranks(world_size: int, batch_size: int, **options: Any) -> list[EdgeBalancedBatchSampler]:
    return [
        EdgeBalancedBatchSampler(EDGES, batch_size, rank=r, world_size=world_size, **options)
        for r in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [3, 4, 5])
def test_every_structure_once_per_epoch(world_size: int, batch_size: int) -> None:
    samplers = ranks(world_size, batch_size)
    steps = list(zip(*samplers, strict=True))
    assert len(steps) == len(samplers[0]) == -(-len(EDGES) // (world_size * batch_size))
    seen = [index for step in steps for batch in step for index in batch]
    assert sorted(seen) == list(range(len(EDGES)))
    sizes = [len(batch) for step in steps for batch in step]
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size


@pytest.mark.parametrize("drop_last", [False, True])
def test_two_ranks_see_what_one_process_with_the_doubled_batch_sees(drop_last: bool) -> None:
    single = ranks(1, 8, seed=5, drop_last=drop_last)[0]
    pair = ranks(2, 4, seed=5, drop_last=drop_last)
    for epoch in range(3):
        for sampler in (single, *pair):
            sampler.set_epoch(epoch)
        for whole, left, right in zip(single, *pair, strict=True):
            assert sorted(whole) == sorted(left + right)
            assert abs(len(left) - len(right)) <= 1


def test_edges_are_balanced_over_the_ranks() -> None:
    edges = np.asarray(EDGES)
    spread = [
        abs(edges[left].sum() - edges[right].sum())
        for left, right in zip(*ranks(2, 8), strict=True)
    ]
    naive = [abs(edges[whole[:8]].sum() - edges[whole[8:]].sum()) for whole in ranks(1, 16)[0]]
    assert np.mean(spread) < 0.2 * edges.mean()
    assert np.mean(spread) < 0.2 * np.mean(naive)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    sampler, again, other = (ranks(1, 4, seed=s)[0] for s in (1, 1, 2))
    first = list(sampler)
    assert list(sampler) == first == list(again)
    assert list(other) != first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_without_shuffling_the_steps_are_in_order() -> None:
    steps = list(ranks(1, 10, shuffle=False)[0])
    assert [sorted(step) for step in steps] == [
        part.tolist() for part in np.array_split(np.arange(43), 5)
    ]


def test_drop_last_keeps_full_steps_only() -> None:
    steps = list(ranks(1, 10, drop_last=True)[0])
    assert [len(step) for step in steps] == [10] * 4


def test_an_epoch_is_resumed_at_any_step_and_only_that_epoch() -> None:
    sampler = ranks(1, 4, seed=3)[0]
    sampler.set_epoch(2)
    whole = list(sampler)
    for step in (0, 1, 7, len(whole)):
        resumed = ranks(1, 4, seed=3)[0]
        resumed.resume_at(2, step)
        resumed.set_epoch(2)  # what a training loop does at the start of an epoch
        assert list(resumed) == whole[step:]
        assert len(resumed) == len(whole)
        resumed.set_epoch(3)
        assert len(list(resumed)) == len(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, r"rank must be in 0..1, got 2"),
        ({"batch_size": 1, "world_size": 2}, "use fewer ranks"),  # 43 = 21 * 2 + 1
        ({"batch_size": 1, "world_size": 50}, "every rank needs a structure"),
        ({"batch_size": 44, "drop_last": True}, "every rank needs a structure"),
    ],
)
def test_impossible_batches_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EdgeBalancedBatchSampler(EDGES, **options)


def test_resuming_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step must be in 0..11, got 12"):
        ranks(1, 4)[0].resume_at(0, 12)
