"""fastmeta.optim.Adam: the bits, the state and the hooks of torch.optim.Adam with fused=True."""

import copy
import pickle
from collections import defaultdict

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import optim

pytestmark = pytest.mark.cpu


def pair(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    other = copy.deepcopy(net)
    return (
        (net, optim.Adam(net.parameters(), **options)),
        (other, torch.optim.Adam(other.parameters(), fused=True, **options)),
    )


def step(net, optimiser, seed, without=()):
    generator = torch.Generator().manual_seed(seed)
    for i, p in enumerate(net.parameters()):
        grad = torch.randn(p.shape, generator=generator)
        p.grad = None if i in without else grad
    optimiser.step()


def equal(ours, theirs):
    for a, b in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(*(o.state_dict()["state"].values() for _, o in (ours, theirs)), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def quick(monkeypatch):
    """How many steps took the quick way."""
    calls, plain = [], optim.Adam._all_at_once
    monkeypatch.setattr(optim.Adam, "_all_at_once", lambda *args: (calls.append(1), plain(*args))[1])
    return calls


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}])
def test_has_the_bits_of_torchs(options, quick):
    ours, theirs = pair(**options)
    for i in range(5):
        for each in (ours, theirs):
            step(*each, i)
    equal(ours, theirs)
    assert len(quick) == 4  # the first makes the state


def test_gradients_that_are_not_there(quick):
    ours, theirs = pair()
    for i, without in enumerate([(0,), (), (), (2, 3), (), ()]):
        for each in (ours, theirs):
            step(*each, i, without)
        equal(ours, theirs)
    assert len(quick) == 3


def test_schedulers_options_hooks_and_scalers(quick):
    ours, theirs = pair()
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for _, o in (ours, theirs)]
    for i in range(3):
        for each, scheduler in zip((ours, theirs), schedulers, strict=True):
            step(*each, i)
            scheduler.step()
    equal(ours, theirs)
    assert len(quick) == 2
    seen = []
    for each in (ours, theirs):
        each[1].register_step_pre_hook(lambda *_: seen.append("before"))
        each[1].register_step_post_hook(lambda *_: seen.append("after"))
        each[1].param_groups[0]["maximize"] = True
        step(*each, 7)
    assert seen == ["before", "after"] * 2 and len(quick) == 2
    equal(ours, theirs)


def test_a_closure_is_called():
    net, optimiser = pair()[0]

    def closure():
        optimiser.zero_grad()
        loss = net(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    first = optimiser.step(closure)
    assert optimiser.step(closure) < first


def test_state_goes_to_torchs_and_back():
    ours, theirs = pair()
    for i in range(3):
        for each in (ours, theirs):
            step(*each, i)
    states = [copy.deepcopy(o.state_dict()) for _, o in (ours, theirs)]
    ours[1].load_state_dict(states[1])
    theirs[1].load_state_dict(states[0])
    for i in range(3):
        for each in (ours, theirs):
            step(*each, i)
    equal(ours, theirs)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_apart(copied):
    ours, theirs = pair()
    for i in range(2):
        for each in (ours, theirs):
            step(*each, i)
    net, optimiser = copied(ours)
    optimiser.param_groups[0]["params"] = list(net.parameters())
    optimiser.state = defaultdict(dict, zip(net.parameters(), optimiser.state.values(), strict=True))
    for i in range(2, 4):
        for each in ((net, optimiser), theirs):
            step(*each, i)
    equal((net, optimiser), theirs)
    assert ours[1].state[next(ours[0].parameters())]["step"] == 2


def test_groups_added_and_a_state_that_is_replaced(quick):
    ours, theirs = pair()
    extra = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    for i in range(4):
        if i == 2:
            for (_, o), p in zip((ours, theirs), extra, strict=True):
                o.add_param_group({"params": [p], "lr": 0.5})
        for (net, o), p in zip((ours, theirs), extra, strict=True):
            p.grad = torch.ones(2)
            step(net, o, i)
    equal(ours, theirs)
    assert torch.equal(*extra) and len(quick) == 1
    ours, theirs = pair()
    for i in range(4):
        for each in (ours, theirs):
            if i == 2:
                each[1].state.clear()
            step(*each, i)
    equal(ours, theirs)


def test_zero_grad():
    net, optimiser = pair()[0]
    step(net, optimiser, 0)
    optimiser.zero_grad(set_to_none=False)
    assert all(p.grad.eq(0).all() for p in net.parameters())
    optimiser.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_fit_uses_it():
    net = nn.Linear(1, 1)
    learner = fastmeta.MAML(net, 0.01, 1, loss="mse")
    batch = [torch.randn(2, 3, 1) for _ in range(4)]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim.Adam, "_all_at_once", lambda *_: seen.append(1))
        fastmeta.fit(learner, [batch] * 3, 3)
    assert len(seen) == 2
