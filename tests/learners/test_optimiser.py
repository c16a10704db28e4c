"""MAML with an inner optimiser against the plain loop, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plain import adam, sgd
from torch import nn
from torch.func import functional_call

import fastmeta
from fastmeta.networks import with_optimiser
from harness.plain_loops import episode, mlp, same_gradients
from harness.plain_unroll import D, plain_unroll


def rates(model):
    return {name: nn.Parameter(torch.rand(2, *p.shape, dtype=D)) for name, p in model.named_parameters()}


CASES = {
    "momentum": (lambda net: fastmeta.SGD(nn.Parameter(torch.tensor(0.3, dtype=D)), 0.6, 0.1), sgd,
                 lambda o: {"lr": o.lr, "momentum": 0.6, "weight_decay": 0.1}),
    "rates of elements and steps": (lambda net: fastmeta.SGD(rates(net)), sgd,
                                    lambda o: {"lr": {n: lambda k, x=x: x[k] for n, x in o.lr.items()}}),
    "adam": (lambda net: fastmeta.Adam(0.1, (0.8, 0.9), eps=1e-3), adam,
             lambda o: {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}),
}  # fmt: skip


def plain(learner, formula, options, support_x, support_y, query_x, query_y):
    params = dict(learner.model.named_parameters())
    changing = {path: params[path] for path in learner.adapted}

    def loss(p, x, y):
        return F.cross_entropy(functional_call(learner.model, params | p, (x,)), y)

    losses = []
    for x, y, *query in zip(support_x, support_y, query_x, query_y, strict=True):
        points, _ = plain_unroll(loss, changing, [(x, y)] * learner.steps, formula, **options)
        weights = learner.loss_weights or (0, 1)
        losses.append(sum(w * loss(p, *query) for w, p in zip(weights, points[1:], strict=True) if w))
    return torch.stack(losses)


@pytest.mark.parametrize("weights", [None, [0.5, -1.0]])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_loop(case, weights, at_once):
    make, formula, options = CASES[case]
    net, data = mlp(), episode()
    optimiser = make(net)
    learner = fastmeta.MAML(net, steps=2, optimiser=optimiser, loss_weights=weights)
    truth = plain(learner, formula, options(optimiser), *data)
    same_gradients(learner.loss(*data), truth, list(learner.parameters()))
    assert len(list(learner.parameters())) == len(list(net.parameters())) + len(optimiser.parameters())
    found, outputs = learner.loss(*data, return_outputs=True)
    torch.testing.assert_close(found, truth)
    torch.testing.assert_close(outputs, learner(*data[:3]))
    if weights is None:
        losses = torch.stack([F.cross_entropy(o, y) for o, y in zip(learner(*data[:3]), data[3], strict=True)])
        same_gradients(losses, truth, list(learner.parameters()))


def test_a_part_is_adapted_and_a_copy_learns_its_own(at_once):
    net, data = mlp(), episode()
    optimiser = fastmeta.SGD({"2.weight": nn.Parameter(torch.tensor(0.2, dtype=D)), "2.bias": 0.5}, 0.9)
    learner = fastmeta.MAML(net, steps=2, optimiser=optimiser, adapt=["2"])
    truth = plain(learner, sgd, {"lr": dict(optimiser.lr), "momentum": 0.9}, *data)
    same_gradients(learner.loss(*data), truth, list(learner.parameters()))
    copied = copy.deepcopy(learner)
    copied.backward(*data)
    assert all(p.grad is None for p in learner.parameters()) and all(p.grad is not None for p in copied.parameters())


NATIVE = {
    "adam, rates of elements": lambda net: fastmeta.Adam({n: torch.rand_like(p) for n, p in net.named_parameters()}, eps=0.1),
    "nesterov, rates of tensors": lambda net: fastmeta.SGD({n: 0.1 for n, _ in net.named_parameters()}, 0.8, 0.1, True),
}  # fmt: skip


@pytest.mark.cpu
@pytest.mark.parametrize("case", [*CASES, *NATIVE])
def test_known_models_run_in_one_call(case, monkeypatch):
    """An MLP and a convolutional network, and the same without their ops."""
    conv = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    )
    images = [x.double() if x.is_floating_point() else x for x in images_of(3)]
    for net, data in ((mlp(), episode()), (conv.double(), images)):
        optimiser = (NATIVE | {name: make for name, (make, *_) in CASES.items()})[case](net)
        learner = fastmeta.MAML(net, steps=2, optimiser=optimiser)
        found = []
        for refused in ("unroll", "_is_known"):
            with monkeypatch.context() as patch:
                patch.setattr(with_optimiser, refused, lambda *_, **__: None)
                losses, outputs = learner.loss(*data, return_outputs=True)
                leaves = [p for p in learner.parameters() if p.requires_grad]
                found.append([losses, outputs, learner(*data[:3]), *torch.autograd.grad(losses.sum(), leaves)])
        torch.testing.assert_close(*found)


def images_of(ways):
    labels = torch.arange(6).remainder(ways).expand(2, 6)
    return torch.rand(2, 6, 1, 4, 4), labels, torch.rand(2, 6, 1, 4, 4), labels


def test_meta_sgd(at_once):
    """Its rates in the place of the optimiser's."""
    net, data = mlp(), episode()
    learner = fastmeta.MetaSGD(net, steps=2, optimiser=fastmeta.SGD(0.3, 0.6, 0.1))
    assert all((rate == 0.3).all() for rate in learner.alpha)
    lr = dict(zip(learner.adapted, learner.alpha, strict=True))
    truth = plain(learner, sgd, {"lr": lr, "momentum": 0.6, "weight_decay": 0.1}, *data)
    same_gradients(learner.loss(*data), truth, list(learner.parameters()))


def test_errors():
    net = mlp()
    with pytest.raises(ValueError, match="MAML: lr must not be given beside optimiser, which has its own, got 0.1"):
        fastmeta.MAML(net, 0.1, optimiser=fastmeta.SGD(0.1))
    with pytest.raises(TypeError, match="MAML: optimiser must be None, a fastmeta.SGD or a fastmeta.Adam, got 'adam'"):
        fastmeta.MAML(net, optimiser="adam")
