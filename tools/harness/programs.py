"""What the programs of the integrations' tests share: models, tasks, and the same training in plain PyTorch."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fastmeta.integrations import _steps
from fastmeta.integrations.recording import report

ITERATIONS, TASKS, SHOTS, WAYS, QUERIES = 15, 2, 5, 3, 4


@pytest.fixture(name="size", autouse=True, params=["small", "large"])
def size_fixture(request, monkeypatch):
    """Modules that import it run their tests with the step of small networks, not recorded, and with the op's, recorded."""
    monkeypatch.setattr(report, "ON", request.param == "large")
    if request.param == "large":
        monkeypatch.setattr(_steps, "SMALL", 0)
    return request.param


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def waves(tasks=TASKS):
    """Support and query of regression tasks, [T, S, 1] each."""
    amplitude, phase = 1 + 4 * torch.rand(tasks, 1, 1).double(), 3 * torch.rand(tasks, 1, 1).double()
    support_x, query_x = (10 * torch.rand(tasks, SHOTS, 1).double() - 5 for _ in range(2))
    return support_x, amplitude * (support_x - phase).sin(), query_x, amplitude * (query_x - phase).sin()


def encoder():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8)).double()


def episode():
    """Support and query of a classification task: [S, 6], [S], [Q, 6], [Q], labels in no order."""
    centres = 2 * torch.randn(WAYS, 6).double()
    found = []
    for shots in (2, QUERIES):
        labels = torch.arange(WAYS).repeat(shots)[torch.randperm(WAYS * shots)]
        found += [centres[labels] + torch.randn(len(labels), 6).double(), labels]
    return found


def trained(parameters, meta_loss):
    """The meta-losses of ITERATIONS steps of Adam."""
    optimiser = torch.optim.Adam(parameters, 1e-2)
    torch.manual_seed(0)
    losses = []
    for _ in range(ITERATIONS):
        optimiser.zero_grad()
        loss = meta_loss()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def meta_trained(parameters, query_loss):
    """On `waves`; query_loss(support_x, support_y, query_x, query_y): of one task."""

    def meta_loss():
        return sum(query_loss(*task) for task in zip(*waves(), strict=True)) / TASKS

    return trained(list(parameters), meta_loss)


@functools.cache
def maml_by_hand(first_order=False, learned=False):
    """Two steps of MAML: at one rate, or at a learned one for each element."""
    model = net()
    names = [name for name, _ in model.named_parameters()]
    rates = [nn.Parameter(torch.full_like(p, 0.05)) if learned else 0.05 for p in model.parameters()]

    def query_loss(support_x, support_y, query_x, query_y):
        params = dict(model.named_parameters())
        for _ in range(2):
            loss = F.mse_loss(functional_call(model, params, support_x), support_y)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
            params = {n: params[n] - a * g for n, a, g in zip(names, rates, grads, strict=True)}
        return F.mse_loss(functional_call(model, params, query_x), query_y)

    return meta_trained([*model.parameters(), *(rates if learned else [])], query_loss)


def protonet_by_hand(scores_of, centred=None):
    """A prototypical network on `episode`: scores_of(query [Q, D], prototypes [N, D]); `centred`: on unit features around it."""
    model = encoder()

    def features(x):
        return model(x) if centred is None else F.normalize(model(x) - centred)

    def meta_loss():
        support_x, support_y, query_x, query_y = episode()
        support = features(support_x)
        centres = torch.stack([support[support_y == k].mean(0) for k in range(WAYS)])
        return F.cross_entropy(scores_of(features(query_x), centres), query_y)

    return trained(model.parameters(), meta_loss)


def minus_squares(query, centres):
    return -(query[:, None] - centres).square().sum(-1)


def euclidean(query, centres):
    return -minus_squares(query, centres).neg().sqrt()


def cosine(query, centres):
    return F.normalize(query) @ F.normalize(centres).T


def on_units(query, centres):
    return minus_squares(_unit(query), _unit(centres))


def unit_cosine(query, centres):
    return _unit(query) @ _unit(centres).T


def _unit(x):
    """As learn2learn has it."""
    return x / (x.norm(dim=1, keepdim=True) + 1e-8)


def assert_same(losses, expected):
    assert len(losses) == ITERATIONS and losses[-1] != losses[0]
    torch.testing.assert_close(torch.tensor(losses).double(), torch.tensor(expected).double(), rtol=0, atol=1e-9)
