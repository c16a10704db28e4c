"""The short way to a native kernel takes nothing that the checks of the long way refuse, and both give the same."""

import importlib
import random

import pytest
import torch
from argument_cases import arguments, call, wrong
from test_layout import OPS

from fastmeta import _dispatch

pytestmark = pytest.mark.cpu


class Sub(torch.Tensor):
    pass


MUTATIONS = [
    lambda t: t.unsqueeze(0),
    lambda t: t[0] if t.ndim else t,
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
    lambda t: t.to_sparse(),
    lambda t: t.as_subclass(Sub),
    lambda t: t.detach().requires_grad_() if t.is_floating_point() else t,
    lambda t: torch.full_like(t, 1e9) if not t.dtype.is_complex else t,
    lambda t: None,
    lambda t: t.tolist(),
    lambda t: [t],
]


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


def test_the_short_way_takes_nothing_that_the_long_way_refuses(monkeypatch):
    taken = {}
    direct = _dispatch.direct

    def short(*args):
        found = direct(*args)
        taken[args[0]] = taken.get(args[0], 0) + (found is not None)
        return found

    modules = [importlib.import_module(f"fastmeta.ops.{op}") for op in OPS]
    modules = [module for module in modules if hasattr(module, "direct")]
    rng = random.Random(0)
    for op in OPS:
        for _ in range(250):
            given = arguments(op)
            for name in rng.sample(list(given), rng.choice((1, 1, 2))):
                given[name] = mutated(given[name], rng)
            found = []
            before = taken.get(op, 0)
            for way in (short, lambda *_: None):
                for module in modules:
                    monkeypatch.setattr(module, "direct", way)
                try:
                    found.append(call(op, given))
                except (TypeError, ValueError, RuntimeError) as error:
                    found.append(error)
                if way is short and taken.get(op, 0) == before:
                    break  # the long way has answered already
            if len(found) == 2:
                ours, theirs = found
                if isinstance(ours, Exception):  # for the labels, of which both say the same
                    assert str(ours) == str(theirs), (op, given, ours, theirs)
                    continue
                assert not isinstance(theirs, Exception), (op, given, theirs)
                torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert all(taken[op] > 20 for op in OPS if op not in ("hvp", "task_conv2d")), taken
