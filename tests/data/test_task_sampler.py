"""Numbered tasks: the same for every world size, device-free, resumable; their random numbers are SplitMix64's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastmeta.data import Episodes, Sinusoid, TaskGenerator, TaskSampler, sample_episodes

pytestmark = pytest.mark.cpu

MASK = 2**64 - 1
IMAGES = torch.rand(12, 6, 2, generator=torch.Generator().manual_seed(1))


def split_mix(state: int, place: int) -> int:
    """SplitMix64 as published, in Python's integers."""
    z = (state + (place + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def of_images(count: int, generator: TaskGenerator) -> Episodes:
    return sample_episodes(IMAGES, count, 3, 1, 2, generator=generator)


def of_sinusoids(count: int, generator: TaskGenerator) -> Episodes:
    return Sinusoid().sample(count, 3, 4, generator=generator)


def meta_batches(world_size: int, tasks: int = 6, steps: int = 3, draw=of_images, seed: int = 0) -> Tensor:
    """What all ranks draw, the ranks joined in order, [steps, tasks, ...]."""
    samplers = [TaskSampler(draw, tasks, seed=seed, rank=r, world_size=world_size) for r in range(world_size)]
    return torch.stack([torch.cat([next(sampler).query_x for sampler in samplers]) for _ in range(steps)])


def test_split_mix_gives_its_published_outputs() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [split_mix(1234567, place) for place in range(3)] == published


@settings(max_examples=40)
@given(
    seed=st.integers(-(2**70), 2**70),
    first=st.integers(0, 2**62),
    count=st.integers(1, 4),
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
def test_the_random_numbers_are_split_mixs(seed: int, first: int, count: int, sizes: list[int]) -> None:
    generator = TaskGenerator(seed, first, count)
    drawn = torch.cat([generator.rand(count, size) for size in sizes], 1)
    assert drawn.dtype == torch.float64
    for task in range(count):
        state = split_mix(split_mix(seed & MASK, 0), first + task)
        assert drawn[task].tolist() == [(split_mix(state, place) >> 11) / 2**53 for place in range(sum(sizes))]


@pytest.mark.parametrize("draw", [of_images, of_sinusoids])
def test_the_tasks_are_the_same_for_every_world_size(draw) -> None:
    alone = meta_batches(1, draw=draw)
    assert len(alone.flatten(0, 1).flatten(1).unique(dim=0)) == 18  # no two tasks are equal
    for world_size in (2, 3, 6):
        assert torch.equal(meta_batches(world_size, draw=draw), alone)
    assert not torch.equal(meta_batches(1, draw=draw, seed=1), alone)


def test_a_state_goes_on_where_it_was_with_any_world_size_and_meta_batch() -> None:
    whole = meta_batches(1, steps=6).flatten(0, 1)  # tasks 0 .. 35
    sampler = TaskSampler(of_images, 6)
    next(sampler), next(sampler)
    state = sampler.state_dict()
    next(sampler)
    assert state == {"seed": 0, "next": 12}
    for rank in range(2):
        other = TaskSampler(of_images, 8, seed=5, rank=rank, world_size=2)
        other.load_state_dict(state)
        first, second = next(other).query_x, next(other).query_x
        assert torch.equal(first, whole[12 + 4 * rank : 16 + 4 * rank])
        assert torch.equal(second, whole[20 + 4 * rank : 24 + 4 * rank])


def test_the_numbers_are_uniform_in_and_across_tasks() -> None:
    cells = 64
    across = TaskGenerator(7, 0, 64_000).rand(64_000, 3)
    within = TaskGenerator(7, 10**12, 1).rand(1, 64_000)
    for values in (*across.unbind(1), across.diff(dim=1)[:, 0].remainder(1), within[0], within[0].diff().remainder(1)):
        counts = torch.bincount((values * cells).long(), minlength=cells).double()
        expected = len(values) / cells
        assert counts.numel() == cells
        assert float(((counts - expected) ** 2 / expected).sum()) < 114.8  # 99.99 % of 63 degrees of freedom


def test_rank_and_world_size_come_together() -> None:
    with pytest.raises(ValueError, match="^TaskSampler: rank and world_size must come together, got 0 and None$"):
        TaskSampler(of_images, 4, rank=0)


def test_under_torchrun_the_process_group_comes_first(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RuntimeError, match="TaskSampler: init_process_group must come first, .* got WORLD_SIZE=3"):
        TaskSampler(of_images, 6)
    assert TaskSampler(of_images, 6, rank=1, world_size=3).rank == 1
