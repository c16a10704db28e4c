from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastmeta.data import Episodes, sample_episodes

pytestmark = pytest.mark.cpu


def numbered(classes: int, examples: int, *shape: int) -> Tensor:
    """Images whose every pixel is class * 1000 + example."""
    number = 1000 * torch.arange(classes)[:, None] + torch.arange(examples)
    return number.double().view(classes, examples, *(1 for _ in shape)).expand(classes, examples, *shape)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60)
@given(
    *[st.integers(1, 5)] * 4, *[st.integers(0, 4)] * 2, st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2**31)
)
def test_classes_and_examples_are_distinct_and_labels_follow_them(
    tasks: int,
    ways: int,
    shots: int,
    queries: int,
    spare_classes: int,
    spare_examples: int,
    shape: list[int],
    seed: int,
) -> None:
    images = numbered(ways + spare_classes, shots + queries + spare_examples, *shape)
    drawn = sample_episodes(images, tasks, ways, shots, queries, generator=seeded(seed))
    assert drawn.support_x.shape == (tasks, ways * shots, *shape)
    assert drawn.query_x.shape == (tasks, ways * queries, *shape)
    assert drawn.support_y.shape == (tasks, ways * shots)
    assert drawn.query_y.shape == (tasks, ways * queries)
    assert all(tensor.is_contiguous() for tensor in drawn)
    for labels, count in ((drawn.support_y, shots), (drawn.query_y, queries)):
        assert labels.dtype == torch.int64
        assert labels.tolist() == [[n for n in range(ways) for _ in range(count)]] * tasks
    for task in range(tasks):
        support = drawn.support_x[task].reshape(ways * shots, -1)
        query = drawn.query_x[task].reshape(ways * queries, -1)
        numbers = torch.cat([support, query])[:, 0]
        assert bool((torch.cat([support, query]) == numbers[:, None]).all())
        assert numbers.unique().numel() == ways * (shots + queries)  # distinct, support apart from query
        classes = (numbers // 1000).long()
        of_label = classes[::shots][:ways]
        assert of_label.unique().numel() == ways
        assert classes.equal(torch.cat([of_label[drawn.support_y[task]], of_label[drawn.query_y[task]]]))


def test_uint8_becomes_a_fraction_and_floating_images_stay() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(4, 8, 8)
    drawn = sample_episodes(images, 3, 2, 2, 1, generator=seeded())
    whole = sample_episodes(images.double(), 3, 2, 2, 1, generator=seeded())
    assert drawn.support_x.dtype == torch.float32
    assert torch.equal(drawn.support_x, (whole.support_x / 255).float())
    assert torch.equal(drawn.query_x, (whole.query_x / 255).float())
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert sample_episodes(images.to(dtype), 3, 2, 2, 1).query_x.dtype == dtype


def test_non_contiguous_images_give_the_same_tasks() -> None:
    images = torch.rand(7, 5, 3, 4, generator=seeded(1))
    strided = images.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    found = [sample_episodes(x, 4, 3, 2, 2, generator=seeded()) for x in (images, strided)]
    assert all(map(torch.equal, *found))


def test_the_generator_decides() -> None:
    images = numbered(20, 10)
    generator = seeded(5)
    first, second = (sample_episodes(images, 8, 5, 1, 2, generator=generator) for _ in range(2))
    again = sample_episodes(images, 8, 5, 1, 2, generator=seeded(5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.support_x, second.support_x)


def test_every_class_example_and_pair_is_equally_likely() -> None:
    classes, examples, tasks = 12, 6, 6000
    drawn = sample_episodes(numbered(classes, examples), tasks, 3, 1, 2, generator=seeded())
    support, query = drawn.support_x.long(), drawn.query_x.long()

    def chi_square(values: Tensor, cells: int) -> float:
        counts = torch.bincount(values.flatten(), minlength=cells).double()
        assert counts.numel() == cells
        expected = values.numel() / cells
        return float(((counts - expected) ** 2 / expected).sum())

    # Bounds: the 99.99 % points of the chi-square distribution; draws without replacement vary less.
    assert chi_square(support // 1000, classes) < 37.4  # 11 degrees of freedom
    for label in range(3):
        assert chi_square(support[:, label] // 1000, classes) < 37.4
    assert chi_square(support % 1000, examples) < 25.8  # 5
    assert chi_square(query % 1000, examples) < 25.8
    pairs = (support[:, 0] // 1000) * classes + support[:, 1] // 1000
    off_diagonal = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    assert int(off_diagonal.diagonal().sum()) == 0
    expected = tasks / (classes * (classes - 1))
    assert float(((off_diagonal - expected) ** 2 / expected).sum() - classes * expected) < 200.0  # 131


def test_one_indexing_serves_any_number_of_tasks() -> None:
    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.ops: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.ops.append(str(func))
            return func(*args, **(kwargs or {}))

    recorded = []
    for tasks in (1, 40):
        with Count() as count:
            sample_episodes(numbered(9, 8, 2).float(), tasks, 5, 1, 3, generator=seeded())
        recorded.append(count.ops)
    assert recorded[0] == recorded[1]
    assert recorded[0].count("aten.index_select.default") == 1


def test_to_moves_every_tensor() -> None:
    drawn = sample_episodes(numbered(3, 4), 2, 3, 1, 1)
    moved = drawn.to("meta")
    assert isinstance(moved, Episodes)
    assert all(tensor.device.type == "meta" for tensor in moved)
    assert [tensor.shape for tensor in moved] == [tensor.shape for tensor in drawn]


def test_a_generator_must_be_on_the_device_of_the_images() -> None:
    with pytest.raises(ValueError, match="^sample_episodes: generator must be on meta, got one on cpu$"):
        sample_episodes(torch.zeros(4, 5, device="meta"), 1, 1, 1, 1, generator=seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_images_are_drawn_on_cuda() -> None:
    images = numbered(6, 5).cuda()
    drawn = [sample_episodes(images, 3, 2, 1, 1, generator=torch.Generator("cuda").manual_seed(0)) for _ in range(2)]
    assert all(tensor.is_cuda for tensor in drawn[0])
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    with pytest.raises(ValueError, match="generator must be on cuda:0, got one on cpu"):
        sample_episodes(images, 3, 2, 1, 1, generator=seeded())
