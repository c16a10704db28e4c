"""The general engine sends the convolutions of several tasks at once to `task_conv2d`: on CUDA, and where Triton is forced."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from fastmeta.networks import tasks_at_once
from harness.dispatched_names import Called
from harness.plain_loops import WEIGHTS, D, plain_losses, same_gradients

GROUPS = {"convolution": 8, "convolution_backward": 9}  # the place of their argument


class Grouped(Called):
    """Torch's grouped convolutions that run."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        place = GROUPS.get(func.__name__.split(".")[0])
        if place and args[place] == 1:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.fixture(autouse=True)
def _two_at_once(monkeypatch):
    monkeypatch.setattr(tasks_at_once, "tasks_at_once", lambda problem, flat: 2)


def network(*convolutions):
    """Of one input channel, on 6 x 6 pixels."""
    body = [layer for convolution in convolutions for layer in (convolution, nn.Tanh())]
    torch.manual_seed(3)
    model = nn.Sequential(*body, nn.Flatten()).to(D)
    features = model(torch.zeros(1, 1, 6, 6, dtype=D)).shape[1]
    return nn.Sequential(model, nn.Linear(features, 3).to(D))


def episode(tasks=3):
    return [x for n in (2, 3) for x in (torch.randn(tasks, n, 1, 6, 6, dtype=D), torch.randint(0, 3, (tasks, n)))]


def check(learner, data):
    inputs = [*learner.parameters(), data[0].requires_grad_(), data[2].requires_grad_()]
    with fastmeta.backend("triton"):
        ours = learner.loss(*data)
        same_gradients(ours, plain_losses(learner, *data), inputs, WEIGHTS[: len(ours)])
        outputs = learner(*data[:3])  # by the other Function
    assert not learner._plan().seen.learned.one_by_one  # no error that sent the tasks one by one
    losses = torch.stack([F.cross_entropy(o, y) for o, y in zip(outputs, data[3], strict=True)])
    same_gradients(losses, plain_losses(learner, *data), inputs, WEIGHTS[: len(ours)])


def grouped_in(run, monkeypatch):
    """Which grouped ones of torch run; the gradients that `run` gives."""
    monkeypatch.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)  # no op must take the mode for a tracer's
    called = Grouped()
    with called:
        grads = run()
    monkeypatch.undo()
    return called.names & set(GROUPS), grads


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradients(first_order):
    """As the plain loop in float64; strides, paddings, with bias and without."""
    model = network(nn.Conv2d(1, 3, 3, padding="same"), nn.Conv2d(3, 2, (2, 3), stride=2, padding=1, bias=False))
    check(fastmeta.MAML(model, nn.Parameter(torch.rand(2, dtype=D)), 2, first_order=first_order), episode())


def test_meta_sgd_and_layers_that_stay():
    model = network(nn.Conv2d(1, 3, 3, padding="valid"), nn.Conv2d(3, 2, 2))
    check(fastmeta.MetaSGD(model, 0.3, 1), episode())
    check(fastmeta.MAML(model, 0.3, 1, adapt=["0.2", "1"]), episode())


def test_other_convolutions_stay_torchs():
    model = network(nn.Conv2d(1, 4, 3, dilation=2, padding=1), nn.Conv2d(4, 2, 2, groups=2),
                    nn.Conv2d(2, 2, 2, stride=(1, 2)), nn.Conv2d(2, 2, (1, 2), padding="same"))  # fmt: skip
    check(fastmeta.MAML(model, 0.3, 1), episode())


@pytest.mark.parametrize("loss", [True, False])
def test_no_grouped_convolution_is_left(loss, monkeypatch):
    """Forward, inner steps and the chain of Hessian-vector products."""
    model, data = network(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, stride=2)), episode()
    learner = fastmeta.MAML(model, 0.3, 2)

    def run():
        values = learner.loss(*data) if loss else learner(*data[:3])
        return torch.autograd.grad(values.square().sum(), list(learner.parameters()))

    with fastmeta.backend("triton"):
        left, ours = grouped_in(run, monkeypatch)
    monkeypatch.setattr(tasks_at_once, "tasks_at_once", lambda problem, flat: 2)
    with fastmeta.backend("reference"):
        grouped, plain = grouped_in(run, monkeypatch)
    assert left == set() and grouped == set(GROUPS)
    torch.testing.assert_close(ours, plain)


def test_autocast():
    """The convolutions are in the dtype of autocast, as torch's without vmap."""
    model, data = network(nn.Conv2d(1, 3, 3, padding=1)).float(), episode()
    data[0], data[2] = data[0].float(), data[2].float()
    learner = fastmeta.MAML(model, 0.3, 1)
    seen = []
    model[0][0].register_forward_hook(
        lambda module, inputs, output: seen.append((fastmeta._dispatch.forced(), output.dtype))
    )
    found = []
    for backend in ("triton", "reference"):
        with fastmeta.backend(backend), torch.autocast(data[0].device.type, torch.bfloat16):
            loss = learner.loss(*data)
            found.append((loss, *torch.autograd.grad(loss.sum(), list(learner.parameters()))))
    assert {dtype for backend, dtype in seen if backend == "triton"} == {torch.bfloat16}
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0.05, atol=0.05)
