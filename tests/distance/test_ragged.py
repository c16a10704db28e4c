"""fastmeta.ragged against a loop over the tasks, in float64: values, gradients of both orders; sizes of 0 and 1, equal ones."""

import pytest
import torch

import fastmeta
from fastmeta import _groups, ragged
from harness.cases import randn

SHAPES = {  # support sizes, query sizes, ways
    "mixed": ([4, 7, 3, 9, 5], [5, 0, 17, 4, 2], [3, 2, 3, 5, 3]),
    "equal": ([4, 4, 4], [3, 3, 3], [2, 2, 2]),
    "equal ways, filled up": ([4, 5, 4, 2], [4, 6, 5, 6], [2, 2, 2, 2]),
    "one": ([3], [4], [3]),
    "no query": ([3, 2], [0, 0], [1, 2]),
    "none": ([], [], []),
}


def problem(shape):
    supports, queries, ways = SHAPES[shape]
    labels = [torch.arange(s).flip(0) % n for s, n in zip(supports, ways, strict=True)]
    targets = [torch.randint(0, n, (q,)) for q, n in zip(queries, ways, strict=True)]
    for y in targets[:1]:
        y[1:3] = -100
    none = torch.zeros(0, dtype=torch.int64)
    return randn(sum(supports), 3), torch.cat([none, *labels]), randn(sum(queries), 3), torch.cat([none, *targets])


def by_ragged(support, labels, query, targets, shape, **options):
    supports, queries, ways = SHAPES[shape]
    centres = ragged.prototypes(support, labels, supports, torch.tensor(ways, dtype=torch.int64))
    log_p = ragged.proto_log_softmax(
        query, centres, queries, tuple(ways), metric=options["metric"], temperature=options["temperature"]
    )
    return centres, ragged.proto_loss(query, centres, targets, queries, ways, **options), log_p


def by_loop(support, labels, query, targets, shape, *, reduction, **options):
    centres, losses, log_p = [support[:0]], [query.sum(-1)[:0]], []
    sizes, queries, ways = SHAPES[shape]
    parts = (support.split(sizes), labels.split(sizes), query.split(queries), targets.split(queries))
    for x, y, q, t, n in zip(*parts, ways, strict=True):
        centres.append(fastmeta.prototypes(x, y, n))
        losses.append(fastmeta.proto_loss(q, centres[-1], t, reduction=reduction, **options).reshape(-1))
        log_p.append(fastmeta.proto_log_softmax(q, centres[-1], **options))
    return torch.cat(centres), torch.cat(losses), log_p


def orders(fn, support, labels, query, targets, *more, **options):
    """Values, gradients, and the gradients of these."""
    tensors = [t.clone().requires_grad_() for t in (support, query)]
    centres, losses, log_p = fn(tensors[0], labels, tensors[1], targets, *more, **options)
    scalar = (
        centres.sin().sum()
        + (losses * torch.arange(1.0, 1 + len(losses)).double()).sin().sum()
        + sum(x.sin().sum() for x in log_p)
    )
    first = torch.autograd.grad(scalar, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
    second = sum(g.sin().sum() for g in first)
    more = (
        torch.autograd.grad(second, tensors, allow_unused=True, materialize_grads=True)
        if second.requires_grad
        else first
    )
    return centres, losses, log_p, first, more


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("metric", "reduction"), [("euclidean", "mean"), ("sqeuclidean", "none"), ("cosine", "sum")])
def test_equals_a_loop_over_the_tasks(shape, metric, reduction, monkeypatch):
    data, options = problem(shape), {"metric": metric, "temperature": 0.6, "reduction": reduction}
    expected = orders(by_loop, *data, shape, **options)
    for little, large in ((0, 1 << 16), (1 << 16, 1 << 16), (1 << 16, 12), (0, -1)):
        monkeypatch.setattr(_groups, "LITTLE", little)
        monkeypatch.setattr(_groups, "LARGE", large)
        torch.testing.assert_close(orders(by_ragged, *data, shape, **options), expected)


def test_groups_hold_every_task_once_and_little_is_filled_up():
    sizes, ways = torch.randint(0, 40, (60,)).tolist(), torch.randint(1, 4, (60,)).tolist()
    groups = _groups.groups_of(sizes, ways, 64)
    assert sorted(t for group in groups for t in group.tasks) == list(range(60))
    for group in groups:
        of_group = [sizes[t] for t in group.tasks]
        lacking = [group.most - size for size in of_group if 4 * size < 3 * group.most]
        assert {ways[t] for t in group.tasks} == {group.ways} and max(of_group) == group.most
        assert sum(lacking) * group.ways * 64 <= _groups.LITTLE and (group.most == 0) == (0 in of_group)
    assert len(_groups.groups_of(sizes, ways, 1 << 20)) > len(groups)


def test_nan_stays_in_its_task_and_low_precision_and_transforms():
    support, labels, query, targets = problem("equal ways, filled up")
    supports, queries, ways = SHAPES["equal ways, filled up"]

    def run(q):
        centres = ragged.prototypes(support.to(q), labels, supports, ways)
        return ragged.proto_loss(q, centres, targets, queries, ways)

    expected = run(query)
    bad = query.clone()
    bad[3] = torch.nan  # the last of task 0, which is filled up by it
    found = run(bad)
    assert found[0].isnan() and torch.equal(found[1:], expected[1:])
    assert run(query.bfloat16()).dtype == torch.bfloat16
    x = query.clone().requires_grad_()
    (plain,) = torch.autograd.grad(run(x).sum(), x)
    torch.testing.assert_close(torch.func.grad(lambda q: run(q).sum())(query), plain)


def test_errors():
    support, labels, query, targets = problem("mixed")
    supports, queries, ways = SHAPES["mixed"]
    centres = ragged.prototypes(support, labels, supports, ways)
    wrong, alone = labels.clone(), labels.clone()
    wrong[4], alone[11:14] = 2, 0
    bad = targets.clone()
    bad[6] = 3
    of = lambda *args: lambda: ragged.prototypes(*args)  # noqa: E731
    loss = lambda *args, **more: lambda: ragged.proto_loss(*args, **more)  # noqa: E731
    for call, text in (
        (of(support, wrong, supports, ways), r"ragged.prototypes: labels must be in \[0, 2\), got 2 in row 4"),
        (
            of(support, alone, supports, ways),
            "ragged.prototypes: every class must have .* got none of class 1 in task 2",
        ),
        (
            of(support, labels, supports[1:], ways),
            "ragged.prototypes: support_sizes must add up to the 28 rows of support, got 24",
        ),
        (
            of(support, labels, supports, ways[1:]),
            "ragged.prototypes: ways must have one number for each of the 5 support_sizes, got 4",
        ),
        (of(support, labels, supports, [0, *ways[1:]]), "ragged.prototypes: ways must be at least 1, got 0"),
        (of(support, labels, 28, ways), "ragged.prototypes: support_sizes must be a sequence of integers, got int"),
        (of(support[None], labels, supports, ways), "ragged.prototypes: support must have 2 dimensions"),
        (
            loss(query, centres[1:], targets, queries, ways),
            "ragged.proto_loss: ways must add up to the 15 rows of prototypes, got 16",
        ),
        (
            loss(query, centres, bad, queries, ways),
            r"ragged.proto_loss: targets must be in \[0, 3\) or ignore_index=-100, got 3",
        ),
        (loss(query, centres, targets, queries, ways, metric="l1"), "ragged.proto_loss: metric must be one of"),
        (
            loss(query, centres, targets, queries, ways, temperature=0.0),
            "ragged.proto_loss: temperature must be positive",
        ),
        (
            loss(query, centres, targets[1:], queries, ways),
            r"ragged.proto_loss: targets must have shape \[28\], got \[27\]",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            call()
