"""Reptile against the plain loop of its paper."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from harness.plain_loops import D, losses_of

MODELS = {
    "native": lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)),
    "general": lambda: nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)),
}


def episode(tasks=5):
    draw = lambda: (torch.randn(tasks, 6, 3, dtype=D), torch.randint(0, 3, (tasks, 6)))  # noqa: E731
    return (*draw(), *draw())


def trained(model, optimiser, steps, x, y):
    """A copy of the model after steps of torch's own optimiser on one task."""
    model = copy.deepcopy(model)
    params = [p for p in model.parameters() if p.requires_grad]
    inner = {
        "sgd": lambda: torch.optim.SGD(params, 0.1),
        "adam": lambda: torch.optim.Adam(params, 0.1, betas=(0.0, 0.999)),
    }[optimiser]()
    for _ in range(steps):
        inner.zero_grad()
        F.cross_entropy(model(x), y).backward()
        inner.step()
    return model


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_outer_step_is_the_interpolation(kind, optimiser, chunk, steps):
    model = MODELS[kind]().to(D)
    learner = fastmeta.Reptile(model, 0.1, steps, optimiser=optimiser, task_chunk=chunk)
    sx, sy, qx, qy = episode()
    tuned = [trained(model, optimiser, steps, x, y) for x, y in zip(sx, sy, strict=True)]
    losses = learner.loss(sx, sy, qx, qy)
    outputs = torch.stack([m(x) for m, x in zip(tuned, qx, strict=True)]).detach()
    torch.testing.assert_close(learner(sx, sy, qx), outputs)
    torch.testing.assert_close(losses.detach(), losses_of(outputs, qy))
    means = [sum(of_tasks) / 5 for of_tasks in zip(*(m.parameters() for m in tuned), strict=True)]
    expected = [(p + 0.7 * (mean - p)).detach() for p, mean in zip(model.parameters(), means, strict=True)]
    losses.mean().backward()
    torch.optim.SGD(learner.parameters(), lr=0.7).step()
    torch.testing.assert_close([p.detach() for p in model.parameters()], expected)


def test_tasks_are_weighted_and_parameters_that_stay_stay():
    learner = fastmeta.Reptile(MODELS["general"]().to(D), 0.1, 3, adapt=["3"])
    data, weights = episode(), torch.rand(5, dtype=D)
    losses = learner.loss(*data)
    (losses * weights).sum().backward()
    found = learner.model[3].weight.grad
    by_task = []
    for task in range(5):
        one = [x[task : task + 1] for x in data]
        by_task.append(torch.autograd.grad(learner.loss(*one).sum(), learner.model[3].weight)[0])
    torch.testing.assert_close(found, sum(w * g for w, g in zip(weights, by_task, strict=True)))
    assert learner.model[0].weight.grad is None
