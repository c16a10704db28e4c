"""What unroll and its optimisers refuse, and what they say."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fastmeta

X, Y = torch.randn(6, 4), torch.randint(0, 3, (6,))
SGD = fastmeta.SGD(0.1)
pytestmark = pytest.mark.cpu


def call(loss=None, params=None, batches=None, net=None, **options):
    net = net or nn.Linear(4, 3)
    options = {"optimiser": SGD} | options
    params, batches = net if params is None else params, [(X, Y)] * 3 if batches is None else batches
    return fastmeta.unroll(loss or (net, "cross_entropy"), params, batches, **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"loss": 3}, TypeError, "loss must be a function, a module or (module, criterion), got int"),
        ({"loss": (nn.Linear(4, 3), "mae")}, ValueError, "criterion must be one of 'cross_entropy', 'mse', got 'mae'"),
        ({"loss": lambda p, x, y: p["weight"]}, ValueError, "loss must return a floating tensor with one element, got torch"),
        ({"loss": lambda p, x, y: 1.0}, ValueError, "loss must return a floating tensor with one element, got float"),
        ({"params": torch.ones(3)}, TypeError, "params must be a dict, a list or a module's parameters, got Tensor"),
        ({"params": {"w": torch.ones(3).long()}}, TypeError, "params[0] must be float32, float64"),
        ({"params": [torch.ones(3)]}, ValueError, "params must be as many as the module's, 2, got 1"),
        ({"batches": X}, TypeError, "batches must be a list of tuples, a tuple of tensors or a function, got Tensor"),
        ({"batches": [(X, Y)], "steps": 2}, ValueError, "batches must be one for each of 2 steps, got 1"),
        ({"batches": lambda k: (X, Y)}, ValueError, "steps must be given where batches is a function, got None"),
        ({"batches": (X, Y[:3])}, ValueError, "must have tensors [K, ...] alone, got"),
        ({"batches": (X, Y), "steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"optimiser": torch.optim.SGD([X.clone()], 0.1)}, TypeError, "optimiser must be a fastmeta.SGD or fastmeta.Adam, got SGD"),
        ({"state": {"step": 0, "exp_avg": 1}}, ValueError, "state must be a dict of ['step'], as a call gives it, got ['exp_avg', 'step']"),
        ({"outer": [lambda p: 0]}, ValueError, "a function or None for each of 3 steps, got 1"),
        ({"outer": [None] * 3}, ValueError, "a function or None for each of 3 steps, got 3"),
        ({"outer": lambda p: X}, ValueError, "outer must return a floating tensor with one element"),
        ({"keep": "half"}, ValueError, "keep must be one of 'all', 'sqrt', got 'half'"),
        ({"tasks": True, "loss": len, "params": [torch.ones(2), torch.ones(3)]}, ValueError, "params[1] must have the tasks' axis"),
        ({"tasks": 2, "loss": lambda p, x, y: p["weight"].sum()}, ValueError, "the loss of each task, [2], got"),
        ({"optimiser": fastmeta.SGD(torch.ones(2))}, ValueError, "lr must broadcast to [] or [3], got [2]"),
        ({"optimiser": fastmeta.SGD([0.1, torch.ones(5)])}, ValueError, "lr must be a dict with the keys of params"),
        ({"optimiser": fastmeta.SGD({"weight": torch.ones(5), "bias": 0.1})}, ValueError, "lr must broadcast to [3, 4] or [3, 3, 4]"),
    ],
)  # fmt: skip
def test_arguments(options, error, words):
    with pytest.raises(error) as found:
        call(**options)
    assert str(found.value).startswith("unroll: ") and words in str(found.value)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda net: fastmeta.SGD(net.parameters()), TypeError, "SGD: lr must come first, a rate or rates, got parameters"),
        (lambda net: fastmeta.Adam(net.parameters(), lr=0.1), TypeError, "a module is trained by torch.optim.Adam"),
        (lambda net: fastmeta.Adam(list(net.parameters()), lr=0.1), TypeError, "torch.optim.Adam"),
        (lambda net: fastmeta.SGD([{"params": net.parameters()}], 0.1), TypeError, "torch.optim.SGD"),
        (lambda net: fastmeta.SGD(float("nan")), ValueError, "SGD: lr must be finite, got nan"),
        (lambda net: fastmeta.SGD(0.1, nesterov=True), ValueError, "SGD: momentum must not be 0 with nesterov, got 0.0"),
        (lambda net: fastmeta.Adam(0.1, (0.9, 1.0)), ValueError, "Adam: betas[1] must be in [0, 1), got 1.0"),
        (lambda net: fastmeta.Adam(0.1, eps=0), ValueError, "Adam: eps must be a positive number, got 0.0"),
        (
            lambda net: fastmeta.fit(fastmeta.MAML(net), [], 1, optimiser=fastmeta.Adam(0.1)), TypeError,
            "fit: optimiser must be one of torch.optim, got fastmeta.Adam, of inner loops",
        ),
    ],
)  # fmt: skip
def test_optimisers(make, error, words):
    with pytest.raises(error) as found:
        make(nn.Linear(4, 3))
    assert words in str(found.value)


def test_a_loss_that_changes_is_refused():
    net, factors = nn.Linear(4, 3), iter(range(1, 100))
    value, _ = call(lambda p, x, y: next(factors) * F.cross_entropy(functional_call(net, p, (x,)), y), net=net)
    with pytest.raises(
        RuntimeError, match="unroll: loss, batches and outer must give on the way back what they gave before"
    ):
        value["weight"].sum().backward()


def test_python_noise_is_seen():
    net, noise = nn.Linear(4, 3), random.Random(0)
    value, _ = call(batches=lambda k: (X * noise.random(), Y), steps=3, net=net)
    with pytest.raises(RuntimeError, match="unroll: loss, batches and outer must give"):
        value["weight"].sum().backward()


def test_results_of_another_step_are_refused():
    net, kept = nn.Linear(4, 3), []

    def loss(p, x, y):
        kept.append(functional_call(net, p, (x,)))
        return F.cross_entropy(kept[0], y) + F.cross_entropy(kept[-1], y)

    with pytest.raises(
        RuntimeError, match="unroll: loss must not keep results of one step for another, got one of step 0 in step 1"
    ):
        call(loss, net=net)


def test_what_is_changed_in_between_is_refused():
    net = nn.Linear(4, 3)
    value, _ = call(net=net)
    with torch.no_grad():
        net.weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value["weight"].sum().backward()


def test_inference_mode():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="must run outside torch.inference_mode"):
        call()
    with torch.no_grad():
        assert not call()[0]["weight"].requires_grad


class Hidden(torch.autograd.Function):
    """Uses a tensor by no operator of torch."""

    @staticmethod
    def forward(ctx, x, w):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g, g.sum()


def test_what_has_hooks_and_goes_into_an_op_is_refused():
    net, centres = nn.Linear(4, 3), torch.ones(3, 3, requires_grad=True).exp()
    centres.register_hook(lambda g: 2 * g)
    value, _ = call(lambda p, x, y: fastmeta.proto_loss(functional_call(net, p, (x,)), centres, y), net=net)
    with pytest.raises(RuntimeError, match="got an op that takes it otherwise: pass it in the batch"):
        value["weight"].sum().backward()


def test_what_cannot_be_found_is_refused():
    net, w = nn.Linear(4, 3), torch.ones((), requires_grad=True).exp()
    with pytest.raises(
        RuntimeError, match="got the result of ExpBackward0, which no operator takes: pass it in the batch"
    ):
        call(lambda p, x, y: Hidden.apply(F.cross_entropy(functional_call(net, p, (x,)), y), w), net=net)
