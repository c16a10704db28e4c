"""Programs in learn2learn's language, on plain PyTorch, on fastmeta.integrations, on learn2learn, and on it accelerated."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import accelerate
from fastmeta.integrations import learn2learn as ours
from harness.installed_peers import peer
from harness.programs import (  # noqa: F401  (size: a fixture)
    TASKS,
    assert_same,
    encoder,
    episode,
    losses_of,
    maml_by_hand,
    net,
    protonet_by_hand,
    size,
    trained,
    waves,
)


def maml(l2l, first_order=False, steps=2):
    learner = l2l.algorithms.MAML(net(), lr=0.05, first_order=first_order)

    def meta_loss():
        total = 0
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            clone = learner.clone()
            for _ in range(steps):
                clone.adapt(F.mse_loss(clone(support_x), support_y))
            total = total + F.mse_loss(clone(query_x), query_y)
        return total / TASKS

    return trained(learner.parameters(), meta_loss)


def fomaml(l2l):
    return maml(l2l, first_order=True)


def meta_sgd(l2l):
    learner = l2l.algorithms.MetaSGD(net(), lr=0.05)

    def meta_loss():
        total = 0
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            clone = learner.clone()
            for _ in range(2):
                clone.adapt(F.mse_loss(clone(support_x), support_y))
            total = total + F.mse_loss(clone(query_x), query_y)
        return total / TASKS

    return trained(learner.parameters(), meta_loss)


def by_updates(l2l, update, rates):
    """The low-level form: clone_module, torch.autograd.grad, an update function."""
    model = net()

    def meta_loss():
        total = 0
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            clone = l2l.clone_module(model)
            for _ in range(2):
                loss = F.mse_loss(clone(support_x), support_y)
                grads = torch.autograd.grad(loss, clone.parameters(), create_graph=True)
                clone = update(clone, rates(model), grads)
            total = total + F.mse_loss(clone(query_x), query_y)
        return total / TASKS

    return trained(model.parameters(), meta_loss)


def maml_update(l2l):
    return by_updates(l2l, l2l.algorithms.maml.maml_update, lambda model: 0.05)


def meta_sgd_update(l2l):
    rates = lambda model: [torch.full_like(p, 0.05) for p in model.parameters()]  # noqa: E731
    return by_updates(l2l, l2l.algorithms.meta_sgd_update, rates)


def update_module(l2l):
    def update(clone, rate, grads):
        return l2l.update_module(clone, updates=[-rate * g for g in grads])

    return by_updates(l2l, update, lambda model: 0.05)


def protonet(l2l, distance="euclidean", normalize=False):
    model = encoder()

    def meta_loss():
        support_x, support_y, query_x, query_y = episode()
        classifier = l2l.nn.PrototypicalClassifier(distance=distance, normalize=normalize)
        classifier.fit_(model(support_x), support_y)
        return F.cross_entropy(classifier(model(query_x)), query_y)

    return trained(model.parameters(), meta_loss)


def cosine(l2l):
    return protonet(l2l, "cosine")


def on_units(l2l):
    return protonet(l2l, normalize=True)


def unit(x):
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8)


def minus_squares(query, centres):
    return -(query[:, None] - centres).square().sum(-1)


def meta_sgd_by_hand():
    model = net()
    return maml_by_hand(model, [nn.Parameter(torch.full_like(p, 0.05)) for p in model.parameters()], 2)


BY_HAND = {
    maml: lambda: maml_by_hand(net(), 0.05, 2),
    fomaml: lambda: maml_by_hand(net(), 0.05, 2, first_order=True),
    meta_sgd: meta_sgd_by_hand,
    maml_update: lambda: maml_by_hand(net(), 0.05, 2),
    meta_sgd_update: lambda: maml_by_hand(net(), 0.05, 2),
    update_module: lambda: maml_by_hand(net(), 0.05, 2),
    protonet: lambda: protonet_by_hand(encoder(), minus_squares),
    cosine: lambda: protonet_by_hand(encoder(), lambda q, c: unit(q) @ unit(c).T),
    on_units: lambda: protonet_by_hand(encoder(), lambda q, c: minus_squares(unit(q), unit(c))),
}
every_program = pytest.mark.parametrize("program", BY_HAND, ids=lambda program: program.__name__)


@every_program
def test_program_on_plain_pytorch(program):
    assert_same(losses_of(program, ours), BY_HAND[program]())


@every_program
def test_program_on_the_peer(program):
    assert_same(losses_of(program, ours), losses_of(program, peer("learn2learn")))


@every_program
def test_accelerated_program(program):
    l2l = peer("learn2learn")
    with accelerate(l2l):
        assert l2l.algorithms.maml.maml_update is l2l.algorithms.maml_update is ours.algorithms.maml_update
        assert_same(program(l2l), losses_of(program, ours))


def test_scores_are_those_of_the_peer():
    """Not only the losses, which a shift of all scores would not change."""
    l2l = peer("learn2learn")
    support_x, support_y, query_x, _ = episode()
    labels = 10 * support_y + 3
    for options in ({}, {"normalize": True}, {"distance": "cosine"}, {"distance": lambda c, q: torch.cdist(q, c)}):
        expected = l2l.nn.PrototypicalClassifier(support_x, labels, **options)(query_x)
        torch.testing.assert_close(ours.nn.PrototypicalClassifier(support_x, labels, **options)(query_x), expected)
        with accelerate(l2l):
            torch.testing.assert_close(l2l.nn.PrototypicalClassifier(support_x, labels, **options)(query_x), expected)


@pytest.mark.parametrize("name", ["MAML", "MetaSGD"])
def test_checkpoints_and_repr_are_the_peers(name):
    theirs = getattr(peer("learn2learn").algorithms, name)(net(), lr=0.1)
    learner = getattr(ours.algorithms, name)(net(), lr=0.1)
    assert list(learner.state_dict()) == list(theirs.state_dict())
    assert repr(learner) == repr(theirs)
    learner.load_state_dict(theirs.state_dict())
