"""TaskSampler.batches: the meta-batches of next(), many drawn in one call."""

import itertools

import pytest
import torch

from fastmeta.data import Sinusoid, TaskSampler, sample_episodes

pytestmark = pytest.mark.cpu


def sinusoids(**options):
    return TaskSampler(lambda count, generator: Sinusoid().sample(count, 3, 4, generator=generator), 6, **options)


def glyphs(**options):
    images = torch.arange(7 * 5 * 4, dtype=torch.uint8).view(7, 5, 1, 2, 2)
    return TaskSampler(
        lambda count, generator: sample_episodes(images, count, 3, 1, 2, generator=generator), 4, **options
    )


def same(batch, other):
    return all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize("make", [sinusoids, glyphs])
@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("ranks", [{}, {"rank": 1, "world_size": 2}])
def test_are_those_of_next(make, chunk, ranks):
    one_by_one, many = make(seed=3, **ranks), make(seed=3, **ranks)
    for expected, batch in zip(itertools.islice(one_by_one, 8), many.batches(chunk), strict=False):
        assert same(expected, batch)
        assert many.state_dict() == one_by_one.state_dict()


def test_go_on_from_a_state_and_beside_next():
    one_by_one, many = sinusoids(), sinusoids()
    batches = many.batches(4)
    for turn in range(9):
        other = next(many) if turn % 4 == 1 else next(batches)
        assert same(next(one_by_one), other)
    state = {"seed": 8, "next": 60}
    many.load_state_dict(state)
    one_by_one.load_state_dict(state)
    assert same(next(one_by_one), next(batches))


def test_errors():
    with pytest.raises(ValueError, match=r"TaskSampler\.batches: chunk must be at least 1, got 0"):
        next(sinusoids().batches(0))
