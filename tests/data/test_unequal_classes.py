"""sample_episodes(counts=...): classes of different sizes, in one gather as equal ones."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmeta.data import TaskGenerator, TaskSampler, sample_episodes

pytestmark = pytest.mark.cpu


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("own", [False, True])
def test_equal_counts_are_the_dense_draw(own: bool) -> None:
    images = torch.rand(7, 6, 2, 3, generator=seeded())
    generators = [TaskGenerator(5, 8, 9) if own else seeded(5) for _ in range(2)]
    dense = sample_episodes(images, 9, 4, 2, 3, generator=generators[0])
    flat = sample_episodes(images.flatten(0, 1), 9, 4, 2, 3, counts=[6] * 7, generator=generators[1])
    assert all(map(torch.equal, dense, flat))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.data(),
)
def test_examples_are_distinct_and_of_their_class(
    tasks: int, shots: int, queries: int, spare: list[int], data: st.DataObject
) -> None:
    counts = [shots + queries + more for more in spare]
    ways = data.draw(st.integers(1, len(counts)))
    owners = torch.tensor([owner for owner, count in enumerate(counts) for _ in range(count)])
    numbers = torch.arange(len(owners)).double()
    drawn = sample_episodes(
        numbers, tasks, ways, shots, queries, counts=counts, generator=seeded(data.draw(st.integers(0, 99)))
    )
    for support, query in zip(drawn.support_x.long(), drawn.query_x.long(), strict=True):
        assert torch.cat([support, query]).unique().numel() == ways * (shots + queries)
        classes = owners[support].view(ways, shots)
        assert (classes == classes[:, :1]).all() and classes[:, 0].unique().numel() == ways
        assert (owners[query].view(ways, queries) == classes[:, :1]).all()


def test_every_example_of_a_class_is_equally_likely() -> None:
    counts = [3, 8, 5]
    drawn = sample_episodes(torch.arange(16).double(), 8000, 1, 1, 2, counts=counts, generator=seeded())
    found = torch.bincount(torch.cat([drawn.support_x, drawn.query_x], 1).long().flatten(), minlength=16).double()
    for share, count in zip(found.split(counts), counts, strict=True):
        expected = 8000 / 3 * 3 / count
        assert float(((share - expected) ** 2 / expected).sum()) < 30  # 99.99 % of chi-square, 7 degrees of freedom
        assert share.sum() == pytest.approx(8000, rel=0.06)


def test_blocks_of_tasks_are_those_of_next() -> None:
    images = torch.arange(40, dtype=torch.uint8).view(20, 1, 2, 1)

    def draw(count, generator):  # type: ignore[no-untyped-def]
        return sample_episodes(images, count, 3, 1, 2, counts=[3, 7, 4, 6], generator=generator)

    for one, many in itertools.islice(zip(TaskSampler(draw, 4), TaskSampler(draw, 4).batches(3), strict=True), 7):
        assert all(map(torch.equal, one, many))


def test_errors() -> None:
    images = torch.zeros(12, 2)
    for counts, error, said in (
        (3, TypeError, "counts must be a sequence of ints, got int"),
        ("66", TypeError, "counts must be a sequence of ints, got str"),
        (torch.tensor([6, 6]), TypeError, "counts must be a sequence of ints, got Tensor"),
        ([6, 6.0], TypeError, "counts must be an int, got float"),
        ([True, 11], TypeError, "counts must be an int, got bool"),
        ([12, 0], ValueError, "counts must be at least 1, got 0"),
        ([13, -1], ValueError, "counts must be at least 1, got -1"),
        ([6, 7], ValueError, "counts must add up to the 12 images, got 13"),
        ([], ValueError, "counts must add up to the 12 images, got 0"),
        ([8, 2, 2], ValueError, "counts must be at least shots + queries = 3, got 2 of class 1"),
        ([12], ValueError, "images must have at least ways=2 classes, got 1"),
    ):
        with pytest.raises(error, match=f"^sample_episodes: {re.escape(said)}$"):
            sample_episodes(images, 1, 2, 1, 2, counts=counts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images must be \[examples of all classes, \.\.\.\], got shape \[\]"):
        sample_episodes(torch.tensor(0.0), 1, 1, 1, 1, counts=[1])
    assert sample_episodes(images, 1, 2, 1, 2, counts=(6, 6)).query_x.shape == (1, 4, 2)
    with pytest.raises(ValueError, match="at least ways=2 classes, got 0"):
        sample_episodes(images[:0], 1, 2, 1, 2, counts=[])
