"""Recorded programs compute what they compute operation by operation."""

import pytest
import torch
from torch import nn

from fastmeta.integrations.learn2learn.algorithms import MAML, MetaSGD
from harness.recorded import (
    TASKS,
    WAYS,
    Functional,
    adapted,
    alone,
    both,
    by_grad,
    conv,
    net,
    stacked,
    summed,
    trained,
    weighted,
    with_accuracy,
)  # fmt: skip

LEARNERS = {
    "maml": lambda: MAML(net(), 0.1),
    "first order": lambda: MAML(net(), 0.1, first_order=True),
    "learned rate": lambda: MAML(net(), nn.Parameter(torch.tensor(0.1).double())),
    "meta-sgd": lambda: MetaSGD(net(), 0.1),
    "functional": lambda: MAML(Functional(), 0.1, allow_unused=True),
    "deep": lambda: MAML(nn.Sequential(nn.Flatten(), *net()), 0.1),
}
WAYS_BACK = {
    "summed": summed,
    "stacked": stacked,
    "by grad": by_grad,
    "weighted": weighted,
    "alone": alone,
    "accuracy": with_accuracy,
}


@pytest.mark.parametrize("way", WAYS_BACK)
@pytest.mark.parametrize(("name", "steps"), [*((name, 3) for name in LEARNERS), ("maml", 0), ("meta-sgd", 1)])
def test_programs(monkeypatch, name, way, steps):
    def program():
        learner = LEARNERS[name]()
        rate = getattr(learner, "lr", None)
        others = [rate] if isinstance(rate, nn.Parameter) and not any(rate is p for p in learner.parameters()) else []
        return trained(learner, lambda learner: WAYS_BACK[way](learner, steps=steps), others=others)

    ways = both(monkeypatch, program)
    expected = "alone" if way in ("alone", "accuracy") else "batched"
    assert expected in ways and "plain" not in ways, ways
    assert "replayed" not in ways or way == "weighted", ways


@pytest.mark.parametrize("way", ["summed", "alone", "accuracy"])
def test_convolutional_networks(monkeypatch, way):
    ways = both(
        monkeypatch, lambda: trained(MAML(conv(), 0.1), lambda learner: WAYS_BACK[way](learner, images=True), 2)
    )
    assert {*ways} == {"batched" if way == "summed" else "alone"}, ways


def test_squares(monkeypatch):
    """Of [n, C] outputs, by the module."""
    square = nn.MSELoss()

    def iteration(learner):
        total = 0
        for _ in range(TASKS):
            x, y = torch.randn(2, 8, 3).double(), torch.randn(2, 8, WAYS).double()
            total = total + square(adapted(learner.clone(), x[0], y[0], 2, square)(x[1]), y[1])
        total.backward()
        return [total]

    assert {*both(monkeypatch, lambda: trained(MAML(net(), 0.1), iteration))} == {"batched"}
