"""Recorded programs in the languages of higher and TorchOpt."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fastmeta.integrations import higher, torchopt
from harness.recorded import TASKS, both, conv, net, task, trained


def in_higher(model, way, learned=False, steps=2, **options):
    """TASKS tasks on `innerloop_ctx`."""
    inner = torch.optim.SGD([{"params": [p]} for p in model.parameters()] if learned else model.parameters(), lr=0.1)
    override = {"lr": [model.rates[f"{i}"] for i in range(4)]} if learned else None
    found, total = [], 0
    for _ in range(TASKS):
        x, y, query_x, query_y = task()
        with higher.innerloop_ctx(model.body, inner, override=override, **options) as (fmodel, diffopt):
            assert isinstance(fmodel, nn.Sequential)
            for _ in range(steps):
                after = diffopt.step(F.cross_entropy(fmodel(x[:]), y))
            outputs = fmodel(query_x)
            loss = F.cross_entropy(outputs, query_y)
            if way == "accuracy":
                found += [(outputs.argmax(1) == query_y).sum(), loss.detach()]
            if way == "asked":
                found += [after[0].sum(), sum(p.sum() for p in fmodel.parameters()), len(diffopt.param_groups)]
            if way == "initial":
                for p, g in zip(
                    model.body.parameters(), torch.autograd.grad(loss, fmodel.parameters(time=0)), strict=True
                ):
                    p.grad = g
                continue
        if way == "summed":
            total = total + loss
        elif way != "evaluated":
            loss.backward()
        found += [] if way == "summed" else [loss.item()]
    if way == "summed":
        total.backward()
        found.append(total)
    return found


class WithRates(nn.Module):
    def __init__(self, shaped):
        super().__init__()
        self.body = net()
        shapes = [p.shape if shaped else () for p in self.body.parameters()]
        self.rates = nn.ParameterDict({f"{i}": nn.Parameter(torch.full(s, 0.1).double()) for i, s in enumerate(shapes)})

    def parameters(self, recurse=True):
        return self.body.parameters(recurse)


@pytest.mark.parametrize(
    ("way", "options", "expected"),
    [
        ("summed", {"copy_initial_weights": False}, {"batched"}),
        ("alone", {"copy_initial_weights": False}, {"alone"}),
        ("accuracy", {"copy_initial_weights": False}, {"alone"}),
        ("summed", {"copy_initial_weights": False, "learned": True, "shaped": True}, {"batched"}),
        ("alone", {"copy_initial_weights": True, "learned": True}, {"alone"}),
        ("summed", {"copy_initial_weights": True, "learned": True}, {"alone"}),
        ("evaluated", {"track_higher_grads": False}, {"alone"}),
        ("alone", {"track_higher_grads": False, "copy_initial_weights": False, "steps": 0}, {"alone"}),
        ("asked", {"copy_initial_weights": False}, {"plain", "alone"}),
        ("initial", {}, {"plain"}),
    ],
)
def test_higher(monkeypatch, way, options, expected):
    options = dict(options)
    shaped = options.pop("shaped", False)

    def program():
        model = WithRates(shaped)
        of_rates = list(model.rates.values()) if "learned" in options else []
        return trained(model, lambda model: in_higher(model, way, **options), others=of_rates)

    ways = both(monkeypatch, program)
    assert {*ways} <= expected | {"replayed"} and {*ways} & expected, ways


def in_torchopt(model, way, steps=2):
    """TASKS tasks on a MetaSGD, which steps the parameters in the model itself."""
    inner = torchopt.MetaSGD(model, lr=0.1)
    start = torchopt.extract_state_dict(model, by="copy" if way == "copied" else "reference")
    found, total = [], 0
    for i in range(TASKS):
        x, y, query_x, query_y = task()
        for _ in range(steps):
            inner.step(F.cross_entropy(model(x[:]), y))
        outputs = model(query_x)
        loss = F.cross_entropy(outputs, query_y)
        if way == "accuracy":
            found += [(outputs.argmax(1) == query_y).sum(), loss.detach()]
        if way == "asked":
            found += [sum(p.sum() for p in model.parameters()), model[0].weight.sum(), len(model.state_dict())]
        if way == "two" and i == 1:
            torchopt.MetaAdam(model[2], lr=0.1).step(loss)
            loss = F.cross_entropy(model(query_x), query_y)
        if way in ("summed", "copied", "two"):
            total = total + loss
        else:
            loss.backward()
            found.append(loss.item())
        if way == "kept" and i == 1:
            kept = torchopt.extract_state_dict(model, by="deepcopy")
            found += [held.sum() for of_part in kept.params for held in of_part.values()]
        torchopt.recover_state_dict(model, start)
    assert all(isinstance(p, nn.Parameter) for p in model.parameters()) or way == "copied"
    if way in ("summed", "copied", "two"):
        total.backward()
        found.append(total)
    again = copy.deepcopy(model)
    with torch.no_grad():
        found.append(again(query_x).sum())
    return found


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("summed", {"batched"}), ("alone", {"alone"}), ("accuracy", {"alone"}), ("asked", {"plain"}), ("two", {"plain", "batched"}),
        ("kept", {"plain", "alone"}),
    ],
)  # fmt: skip
def test_torchopt(monkeypatch, way, expected):
    ways = both(monkeypatch, lambda: trained(net(), lambda model: in_torchopt(model, way)))
    assert expected <= {*ways} <= expected | {"replayed", "alone"}, ways
    assert "replayed" not in ways or way in ("two", "asked"), ways


def with_statistics():
    model = conv()
    model[1] = nn.BatchNorm2d(4, momentum=0.3).double()
    return model


@pytest.mark.parametrize("asked", [False, True])
def test_running_statistics_in_higher(monkeypatch, asked):
    """They are those of the copy; batches make the outputs."""

    def iteration(model):
        inner, found = torch.optim.SGD(model.parameters(), lr=0.1), []
        for _ in range(TASKS):
            x, y, query_x, query_y = task(images=True)
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
                for _ in range(2):
                    diffopt.step(F.cross_entropy(fmodel(x), y))
                loss = F.cross_entropy(fmodel(query_x), query_y)
                loss.backward()
                found += [loss.item(), *(b.double().sum() for b in fmodel.buffers())] if asked else [loss.item()]
        return [*found, *(b.double().sum() for b in model.buffers())]

    ways = both(monkeypatch, lambda: trained(with_statistics(), iteration, 2))
    assert {*ways} == ({"alone", "plain"} if asked else {"alone"}), ways


@pytest.mark.parametrize("options", [{"by": "reference"}, {"by": "reference", "detach_buffers": True}, {"by": "copy"}])
def test_running_statistics_in_torchopt(monkeypatch, options):
    def iteration(model):
        inner, found = torchopt.MetaSGD(model, lr=0.1), []
        start = torchopt.extract_state_dict(model, **options)
        for i in range(TASKS):
            x, y, query_x, query_y = task(images=True)
            for _ in range(2):
                inner.step(F.cross_entropy(model(x), y))
            loss = F.cross_entropy(model(query_x), query_y)
            loss.backward()
            found += [loss.item(), *(b.double().sum() for b in model.buffers())] if i == 1 else [loss.item()]
            torchopt.recover_state_dict(model, start)
            found += [b.double().sum() for b in model.buffers()] if i == 2 else []
        return found

    def program():
        model = with_statistics()
        return trained(nn.ParameterList(model.parameters()), lambda _: iteration(model), 2)

    assert "alone" in both(monkeypatch, program)


@pytest.mark.parametrize("whole_layer", [False, True])
def test_modules_that_share_a_parameter_compute_at_once(whole_layer):
    first, last = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()
    second = first if whole_layer else nn.Linear(6, 6).double()
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randint(3, (4,))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(F.cross_entropy(fmodel(x), y))
        found = torch.autograd.grad(F.cross_entropy(fmodel(x), y), [*model.parameters()])

    def loss(params):
        return F.cross_entropy(functional_call(model, params, (x,)), y)

    params = dict(model.named_parameters())
    grads = torch.autograd.grad(loss(params), [*params.values()], create_graph=True)
    after = {name: p - 0.1 * g for (name, p), g in zip(params.items(), grads, strict=True)}
    torch.testing.assert_close(found, torch.autograd.grad(loss(after), [*params.values()]))
