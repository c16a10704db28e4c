"""The short way to a native kernel takes nothing that the checks of the long way refuse, and both give the same."""

import inspect
import random

import pytest
import torch

import fastmeta
from fastmeta import _route
from harness.argument_cases import arguments, call, wrong
from harness.cases import OPS

pytestmark = pytest.mark.cpu
DRAWS = 200


class Sub(torch.Tensor):
    pass


MUTATIONS = [
    lambda t: t.unsqueeze(0),
    lambda t: t[0] if t.ndim and len(t) else t,
    lambda t: t[:1] if t.ndim else t,
    lambda t: t[:0] if t.ndim else t,
    lambda t: t[..., :1] if t.ndim else t,
    lambda t: t.double(),
    lambda t: t.half(),
    lambda t: t.long(),
    lambda t: t.int(),
    lambda t: t.bool(),
    lambda t: t.to(torch.complex64),
    lambda t: t.mT if t.ndim > 1 else t,
    lambda t: t.flatten(),
    lambda t: t.expand(3, *t.shape),
    lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    lambda t: torch._neg_view(t) if not t.dtype.is_complex and t.dtype is not torch.bool else t,
    lambda t: t.to("meta"),
    lambda t: t.as_subclass(torch.Tensor).to_sparse(),
    lambda t: t.as_subclass(Sub),
    lambda t: t.detach().requires_grad_() if t.is_floating_point() else t,
    lambda t: torch.full_like(t, 1e4) if not t.dtype.is_complex else t,
    lambda t: None,
    lambda t: t.tolist(),
    lambda t: [t],
]


RATES = [
    0.1, torch.tensor(0.1), torch.tensor([0.1, 0.2]), torch.ones(3, 4), torch.ones(3), torch.ones(2, 3, 4), [0.1, torch.tensor(0.1)],
    [torch.ones(3, 4), torch.ones(3)], [torch.ones(2, 3, 4), torch.ones(2, 3)], [torch.ones(2), torch.ones(2)], [0.1, torch.ones(2)],
    [torch.ones(2), 0.1], [torch.ones(3, 4), 0.1], [torch.tensor(0.1)], [torch.ones(3, 4)], (1, 2), [0.1, None], [float("nan"), 0.1],
]  # fmt: skip


def mutated(value, rng):
    if isinstance(value, list) and value:
        kind = rng.randrange(4)
        if kind == 0:
            return value[:-1]
        if kind == 1:
            return [*value, *value]
        place = rng.randrange(len(value))
        return [mutated(v, rng) if i == place else v for i, v in enumerate(value)]
    if isinstance(value, torch.Tensor):
        for _ in range(rng.choice((1, 1, 2))):
            value = rng.choice(MUTATIONS)(value)
            if not isinstance(value, torch.Tensor) or value.device.type != "cpu" or value.layout is not torch.strided:
                break
        return value
    return rng.choice([*wrong()[:30], value, value])


def drawn(op, rng):
    """A call with something changed: an argument or two, all tensors in the same way, the kind of rates."""
    given = arguments(op)
    if rng.random() < 0.2:
        change = rng.choice(MUTATIONS)
        each = lambda v: change(v) if isinstance(v, torch.Tensor) else v  # noqa: E731
        return {
            name: [each(v) for v in value] if isinstance(value, list) else each(value) for name, value in given.items()
        }
    for name in rng.sample(list(given), min(rng.choice((1, 1, 2)), len(given))):
        given[name] = rng.choice(RATES) if name == "lr" else mutated(given[name], rng)
    return given


@pytest.mark.parametrize("op", [op for op in OPS if hasattr(inspect.getmodule(getattr(fastmeta, op)), "direct")])
def test_the_short_way_takes_nothing_that_the_long_way_refuses(op, monkeypatch):
    module, rng = inspect.getmodule(getattr(fastmeta, op)), random.Random(0)
    took = 0
    for _ in range(DRAWS):
        given, answers = drawn(op, rng), []

        def short(*args, answers=answers):
            answers.append(_route.direct(*args))
            return answers[-1]

        monkeypatch.setattr(module, "direct", short)
        ours = answer(op, given)
        if not answers or answers[0] is None:
            continue  # it was the long way that has answered
        monkeypatch.setattr(module, "direct", lambda *_: None)
        theirs, took = answer(op, given), took + 1
        if isinstance(ours, Exception) or isinstance(theirs, Exception):  # for the labels' values
            assert repr(ours) == repr(theirs), given
        else:
            torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert took > DRAWS // 20


def answer(op, given):
    try:
        return call(op, given)
    except (TypeError, ValueError, RuntimeError) as error:
        return error
