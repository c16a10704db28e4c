"""Heads of prototypical networks whose loss is one op compute what they compute operation by operation."""

import importlib
import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import accelerate, easyfsl, explain, learn2learn
from harness.installed_peers import peer
from harness.recorded import both

D = torch.float64


def by_learn2learn(support, labels, module=learn2learn.nn, **options):
    head = module.PrototypicalClassifier(**options)
    head.fit_(support, labels)
    return head


def by_easyfsl(support, labels, module=easyfsl.methods, **options):
    head = module.PrototypicalNetworks(**options)
    head.process_support_set(support, labels)
    return head


def plain(scores, query, y):
    return F.cross_entropy(scores, y)


def with_accuracy(scores, query, y):
    hits = (scores.argmax(1) == y).double().mean()
    return nn.CrossEntropyLoss()(scores, y) * (1 + hits)


def ignored(scores, query, y):
    y = y.clone()
    y[::2] = -100
    return F.cross_entropy(scores, y)


def of_many_kinds(scores, query, y):
    """Every other thing that programs do with scores."""
    assert scores.shape == (7, 3) and scores.ndim == 2 and len(scores) == 7 and isinstance(scores, torch.Tensor)
    found = F.cross_entropy(scores, y, label_smoothing=0.1) + F.nll_loss(scores.log_softmax(1), y) + scores.mean()
    found = (
        found
        + F.cross_entropy(scores / 2, y)
        + F.cross_entropy(scores, y, reduction="none").sum()
        + F.cross_entropy(scores, y)
    )
    scores -= 1
    return found + torch.cat([scores, scores[:2]]).exp().sum()


def written(scores, query, y):
    with torch.no_grad():
        query.mul_(2)
    return F.cross_entropy(scores, y)


def hooked(scores, query, y):
    scores.register_hook(lambda g: 3 * g)
    return F.cross_entropy(scores, y)


def of_second_order(scores, query, y):
    (g,) = torch.autograd.grad(F.cross_entropy(scores, y), query, create_graph=True)
    return g.square().sum()


PROGRAMS = (plain, with_accuracy, ignored, of_many_kinds, written, hooked, of_second_order)
HEADS = {
    "learn2learn": by_learn2learn,
    "normalize": lambda *data: by_learn2learn(*data, normalize=True),
    "cosine": lambda *data: by_learn2learn(*data, distance="cosine"),
    "easyfsl": by_easyfsl,
    "softmax": lambda *data: by_easyfsl(*data, use_softmax=True),
}


def trained(of_head, program):
    """The loss and the gradients to the features."""
    torch.manual_seed(0)
    features = [torch.randn(n, 4, dtype=D, requires_grad=True) for n in (6, 7)]
    query = features[1] * 1.5
    scores = of_head(features[0], torch.arange(6) % 3)(query)
    loss = program(scores, query, torch.arange(7) % 3)
    loss.backward()
    return [loss.detach(), *(x.grad for x in features)]


REFUSED = (
    (written, "normalize"),
    (written, "cosine"),
    (of_many_kinds, "softmax"),
)  # by PyTorch: writes to what is saved


@pytest.mark.parametrize(("program", "head"), [x for x in itertools.product(PROGRAMS, HEADS) if x not in REFUSED])
def test_programs(monkeypatch, head, program):
    ways = both(monkeypatch, lambda: trained(HEADS[head], program))
    taken = program in (plain, with_accuracy, written, of_second_order) and head not in ("cosine", "softmax")
    assert ("alone" in ways) == taken, ways


@pytest.mark.parametrize("name", ["learn2learn", "easyfsl"])
def test_inside_accelerate(name):
    peer(name)
    module = importlib.import_module({"learn2learn": "learn2learn.nn", "easyfsl": "easyfsl.methods"}[name])
    of_head = {"learn2learn": by_learn2learn, "easyfsl": by_easyfsl}[name]
    expected = trained(lambda *data: of_head(*data, module=module), with_accuracy)
    explain(clear=True)
    with accelerate(sys.modules[name]):
        found = trained(lambda *data: of_head(*data, module=module), with_accuracy)
    assert [row[:3] for row in explain(clear=True)] == [("alone", 1, "head")]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_errors_and_what_is_not_recorded():
    support, query, labels = torch.randn(6, 4, requires_grad=True), torch.randn(7, 4), torch.arange(6) % 3
    head = by_learn2learn(support, labels)
    for wrong in (torch.arange(7), torch.arange(7) - 3):
        with pytest.raises((IndexError, RuntimeError), match="bounds|target"):
            F.cross_entropy(head(query), wrong)
    with pytest.raises(ValueError, match="batch_size"):
        F.cross_entropy(head(query), torch.zeros(6, dtype=torch.int64))
    assert torch.isnan(F.cross_entropy(head(query), torch.full((7,), -100)))
    with torch.no_grad():
        assert type(head(query)) is torch.Tensor
    assert type(by_learn2learn(support.detach(), labels)(query)) is torch.Tensor
    assert type(head(query.requires_grad_())) is not torch.Tensor

    class Halved(easyfsl.methods.PrototypicalNetworks):
        def l2_distance_to_prototypes(self, samples):
            return super().l2_distance_to_prototypes(samples) / 2

    halved, whole = Halved(), easyfsl.methods.PrototypicalNetworks()
    for each in (halved, whole):
        each.process_support_set(support, labels)
    torch.testing.assert_close(halved(query), torch.as_tensor(whole(query) / 2))
