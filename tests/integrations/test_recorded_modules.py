"""Loops on learn2learn's clone_module, with gradients and updates of their own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import learn2learn
from harness.installed_peers import peer
from harness.recorded import TASKS, both, net, task, trained


def by_update(l2l, clone, loss, first_order, rate):
    grads = torch.autograd.grad(loss, clone.parameters(), create_graph=not first_order, retain_graph=True)
    return l2l.algorithms.maml.maml_update(clone, rate, grads)


def by_updates(l2l, clone, loss, first_order, rate):
    grads = torch.autograd.grad(loss, list(clone.parameters()), create_graph=not first_order)
    return l2l.update_module(clone, updates=[-rate * g for g in grads])


def by_attributes(l2l, clone, loss, first_order, rate):
    """As learn2learn's own maml_update."""
    params = list(clone.parameters())
    grads = torch.autograd.grad(loss, params, create_graph=not first_order)
    for p, g in zip(params, grads, strict=True):
        p.update = -rate * g
    return l2l.update_module(clone)


def by_hand(l2l, clone, loss, first_order, rate):
    """Gradients that are looked at first."""
    params = list(clone.parameters())
    grads = torch.autograd.grad(loss, params, create_graph=not first_order)
    norm = sum(g.square().sum() for g in grads).sqrt()
    return l2l.update_module(clone, updates=[-rate * g / norm for g in grads])


def of_part(l2l, clone, loss, first_order, rate):
    """A step of the last layer alone."""
    grads = torch.autograd.grad(loss, list(clone.parameters())[2:], create_graph=not first_order)
    return l2l.update_module(clone, updates=[None, None, *(-rate * g for g in grads)])


def by_other_rates(l2l, clone, loss, first_order, rate):
    grads = torch.autograd.grad(loss, list(clone.parameters()), create_graph=not first_order)
    return l2l.update_module(clone, updates=[-rate * (1 + i) * g for i, g in enumerate(grads)])


def of_start(l2l, clone, loss, first_order, rate):
    """Parameters that were kept before a step: gradients go through it."""
    before = list(clone.parameters())
    clone = by_update(l2l, clone, loss, first_order, rate)
    after = F.cross_entropy(clone(torch.ones(4, 3).double()), torch.tensor([0, 1, 2, 0]))
    grads = torch.autograd.grad(after, before, create_graph=not first_order, allow_unused=True)
    return l2l.update_module(clone, updates=[None if g is None else -rate * g for g in grads])


def by_learned_rate(l2l, clone, loss, first_order, rate):
    return by_update(l2l, clone, loss, first_order, RATE)


def twice(l2l, clone, loss, first_order, rate):
    """Gradients of one loss, for two updates."""
    grads = torch.autograd.grad(loss, list(clone.parameters()), create_graph=not first_order)
    clone = l2l.algorithms.maml.maml_update(clone, rate, grads)
    return l2l.algorithms.maml.maml_update(clone, rate / 2, grads)


def looked_at(l2l, clone, loss, first_order, rate):
    """A state dict, the number of parameters, a clone of the clone, a cut graph."""
    clone = by_update(l2l, clone, loss, first_order, rate)
    names = list(clone.state_dict())
    assert len(names) == 4 and sum(p.numel() for p in clone.parameters()) == 52
    again = l2l.clone_module(clone)
    assert isinstance(again, nn.Sequential) and len(again) == 3 and again.training
    return again


def detached(l2l, clone, loss, first_order, rate):
    clone = by_update(l2l, clone, loss, first_order, rate)
    l2l.detach_module(clone, keep_requires_grad=True)
    return clone


def written(l2l, clone, loss, first_order, rate):
    """Parameters of the model, written where no version counts it, between a clone and its loss."""
    for p in MODELS[-1].parameters():
        p.data.mul_(0.9)
    return by_update(l2l, clone, loss, first_order, rate)


MODELS: list[nn.Module] = []
RATE = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
RECORDED = (by_update, by_updates)
PLAIN = (
    by_attributes, by_hand, of_part, by_other_rates, of_start, by_learned_rate, twice, looked_at, detached, written,
)  # fmt: skip


def adapted(l2l, model, step, first_order, steps):
    total = 0
    MODELS.append(model)
    for _ in range(TASKS):
        x, y, query_x, query_y = task()
        clone = l2l.clone_module(model)
        for k in range(steps):
            clone = step(l2l, clone, F.cross_entropy(clone(x), y), first_order, 0.1 * (1 + k))
        total = total + F.cross_entropy(clone(query_x), query_y)
    total.backward()
    return [total]


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("step", (*RECORDED, *PLAIN))
def test_loop(monkeypatch, step, first_order):
    def on(l2l):
        return trained(net(), lambda model: adapted(l2l, model, step, first_order, 1 if step is detached else 3))

    ways = both(monkeypatch, lambda: on(learn2learn))
    assert step not in RECORDED or {*ways} == {"batched"}, ways
    theirs = on(peer("learn2learn"))
    monkeypatch.undo()
    torch.testing.assert_close(on(learn2learn), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("chosen", "words"), [(slice(None, None, -1), "the shape of its parameter"), (slice(2), "one entry for each")]
)
def test_gradients_that_do_not_fit(chosen, words):
    x, y, *_ = task()
    clone = learn2learn.clone_module(net())
    grads = torch.autograd.grad(F.cross_entropy(clone(x), y), clone.parameters(), create_graph=True)
    with pytest.raises(ValueError, match=words):
        learn2learn.algorithms.maml_update(clone, 0.1, grads[chosen])


def test_evaluation_mode_and_alone(monkeypatch):
    """A module in evaluation mode, each task with its backward, and a gradient that serves elsewhere after the step."""

    def iteration(model):
        found = []
        model.eval()
        for _ in range(TASKS):
            x, y, query_x, query_y = task()
            clone = learn2learn.clone_module(model)
            grads = torch.autograd.grad(F.cross_entropy(clone(x), y), clone.parameters(), create_graph=True)
            assert all(g.shape == p.shape for g, p in zip(grads, model.parameters(), strict=True))
            clone = learn2learn.algorithms.maml_update(clone, 0.1, grads)
            loss = F.cross_entropy(clone(query_x), query_y)
            loss.backward(retain_graph=True)
            grads[0].square().sum().backward()
            assert not clone.training
            found += [loss.item(), grads[1].sum()]
        return found

    both(monkeypatch, lambda: trained(net(), iteration))
