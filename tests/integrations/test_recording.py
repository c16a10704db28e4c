"""Recorded programs compute what they compute operation by operation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations.learn2learn.algorithms import MAML, MetaSGD
from harness.recorded import (
    TASKS,
    WAYS,
    Functional,
    Lines,
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


@pytest.mark.parametrize("way", ["summed", "alone", "accuracy"])
@pytest.mark.parametrize("first_order", [False, True])
def test_models_of_the_engine(monkeypatch, way, first_order):
    """Tasks together where losses are summed; one task alone is computed operation by operation, and the model given up in the end."""

    def model():
        torch.manual_seed(1)
        norm = nn.BatchNorm1d(6, track_running_stats=False)
        return nn.Sequential(nn.Linear(3, 6), norm, nn.SiLU(), nn.Linear(6, WAYS)).double()

    def program():
        return trained(MAML(model(), 0.1, first_order=first_order), lambda learner: WAYS_BACK[way](learner), 7)

    assert {*both(monkeypatch, program)} == ({"batched"} if way == "summed" else {"replayed", "plain"})


ENDS = {"cross entropy": (False, F.cross_entropy), "nll": (True, nn.NLLLoss()), "both": (True, F.cross_entropy)}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("way", ["summed", "alone", "accuracy"])
@pytest.mark.parametrize("learner", [MAML, MetaSGD])
def test_norms_between_linear_layers(monkeypatch, learner, way, end):
    ends, loss = ENDS[end]
    ways = both(monkeypatch, lambda: trained(learner(Lines(ends), 0.1), lambda of: WAYS_BACK[way](of, loss=loss)))
    assert {*ways} == {"batched" if way == "summed" else "alone"}, ways


@pytest.mark.parametrize(
    ("end", "loss"),
    [(False, F.nll_loss), (True, lambda x, y: F.mse_loss(x, x.detach() * 0 + y.unsqueeze(1))), (True, nn.NLLLoss(reduction="sum"))],
)  # fmt: skip
def test_losses_that_are_no_cross_entropy_of_the_outputs(monkeypatch, end, loss):
    ways = both(monkeypatch, lambda: trained(MAML(Lines(end), 0.1), lambda learner: summed(learner, loss=loss)))
    assert not {"batched", "alone"} & {*ways}, ways


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
