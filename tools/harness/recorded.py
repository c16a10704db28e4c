"""Programs that are recorded, and not: what their tests share."""

import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import explain
from fastmeta.integrations.recording import report

TASKS, WAYS = 3, 4


def net(width=6):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, WAYS)).double()


class Functional(nn.Module):
    """As users write it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(3, 6).double(), nn.Linear(6, WAYS).double()

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


class Lines(nn.Module):
    """As learn2learn's OmniglotFC: a norm that comes first among the parameters of its block; or as its meta_mnist, with the end."""

    def __init__(self, end=False, **options):
        super().__init__()
        torch.manual_seed(1)
        self.norm, self.first = nn.BatchNorm1d(6, **{"track_running_stats": False} | options), nn.Linear(3, 6)
        self.second, self.end = nn.Linear(6, WAYS), end
        self.double()

    def forward(self, x):
        x = self.second(F.relu(self.norm(self.first(x))))
        return F.log_softmax(x, dim=1) if self.end else x


def conv():
    torch.manual_seed(1)
    block = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*block, nn.Flatten(), nn.Linear(4 * 9, WAYS)).double()


def task(images=False):
    shape = (1, 6, 6) if images else (3,)
    of = [(torch.randn(8, *shape).double(), torch.randint(0, WAYS, (8,))) for _ in range(2)]
    return (*of[0], *of[1])


def trained(learner, of_iteration, iterations=3, others=()):
    """What the iterations return, the gradients and the parameters in the end."""
    optimiser = torch.optim.SGD([*learner.parameters(), *others], 0.1)
    torch.manual_seed(0)
    found = []
    for _ in range(iterations):
        optimiser.zero_grad()
        found += [torch.as_tensor(x).detach().double().clone() for x in of_iteration(learner)]
        optimiser.step()
    of_parameters = [
        x.detach().clone()
        for p in [*learner.parameters(), *others]
        for x in (p, torch.zeros_like(p) if p.grad is None else p.grad)
    ]
    return found + of_parameters


def both(monkeypatch, program):
    """`program()` recorded and not; what explain() says of the former."""
    explain(clear=True)
    found = program()
    ways = {}
    for way, count, _, why in explain(clear=True):
        ways.setdefault(way, []).append((count, why))
    monkeypatch.setattr(report, "ON", False)
    torch.testing.assert_close(found, program(), rtol=1e-9, atol=1e-11)
    return ways


def adapted(clone, x, y, steps, loss=F.cross_entropy):
    for _ in range(steps):
        clone.adapt(loss(clone(x), y))
    return clone


def losses(learner, steps=2, images=False, loss=F.cross_entropy, **options):
    for _ in range(TASKS):
        x, y, query_x, query_y = task(images)
        clone = adapted(learner.clone(**options), x, y, steps, loss)
        yield loss(clone(query_x), query_y)


def summed(learner, **options):
    total = 0.0
    for loss in losses(learner, **options):
        total += loss
    total /= TASKS
    total.backward()
    return [total.item()]


def stacked(learner, **options):
    total = torch.stack(list(losses(learner, **options))).mean()
    total.backward()
    return [total]


def by_grad(learner, **options):
    total = torch.stack(list(losses(learner, **options))).sum()
    params = list(learner.parameters())
    value = total.detach()
    for p, g in zip(params, torch.autograd.grad(total, params, allow_unused=True), strict=True):
        p.grad = g
    return [value]


def weighted(learner, **options):
    """A sum that is not recorded."""
    total = (torch.stack(list(losses(learner, **options))) * torch.arange(1.0, 1 + TASKS).double()).sum()
    total.backward()
    return [total]


def alone(learner, **options):
    found = []
    for loss in losses(learner, **options):
        loss.backward()
        found.append(loss.item())
    return found


def with_accuracy(learner, steps=2, images=False, before=True, loss=F.cross_entropy):
    """Accuracy on the side, before the way back or after it."""
    found = []
    for _ in range(TASKS):
        x, y, query_x, query_y = task(images)
        clone = adapted(learner.clone(), x, y, steps, loss)
        outputs = clone(query_x)
        value = loss(outputs, query_y)
        hits = (outputs.argmax(1) == query_y).sum() if before else None
        value.backward()
        found += [value.item(), (outputs.argmax(1) == query_y).sum() if hits is None else hits]
    return found
