"""The general engine sends the convolutions of several tasks at once to `task_conv2d`: on CUDA, and where Triton is forced."""

import pytest
import torch
from torch import nn

import fastmeta
from harness.dispatched_names import Called
from harness.engine import force_tasks_at_once, runs_one_by_one
from harness.plain_loops import D, episode, same_as_the_plain_loop

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
    force_tasks_at_once(monkeypatch, 2)


def network(*convolutions):
    """Of one input channel, on 4 x 4 pixels."""
    body = [layer for convolution in convolutions for layer in (convolution, nn.Tanh())]
    torch.manual_seed(3)
    model = nn.Sequential(*body, nn.Flatten()).to(D)
    features = model(torch.zeros(1, 1, 4, 4, dtype=D)).shape[1]
    return nn.Sequential(model, nn.Linear(features, 3).to(D))


def images():
    return [*episode(2, 2, 3, (1, 4, 4))]


def check(learner):
    data = images()
    with fastmeta.backend("triton"):
        same_as_the_plain_loop(learner, data, data[0].requires_grad_(), data[2].requires_grad_())
    assert not runs_one_by_one(learner)  # no error that sent the tasks one by one


def grouped_in(run, monkeypatch):
    """Which grouped ones of torch run; the gradients that `run` gives."""
    monkeypatch.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)  # no op must take the mode for a tracer's
    called = Grouped()
    with called:
        grads = run()
    monkeypatch.undo()
    return called.names & set(GROUPS), grads


def test_meta_gradients():
    """As the plain loop in float64; strides, paddings, with bias and without. Of two steps: test_no_grouped_convolution_is_left."""
    model = network(nn.Conv2d(1, 3, 3, padding="same"), nn.Conv2d(3, 2, (2, 3), stride=2, padding=1, bias=False))
    check(fastmeta.MAML(model, nn.Parameter(torch.rand(1, dtype=D)), 1))


def test_meta_sgd_and_layers_that_stay():
    model = network(nn.Conv2d(1, 3, 3, padding="valid"), nn.Conv2d(3, 2, 2))
    check(fastmeta.MetaSGD(model, 0.3, 1))
    check(fastmeta.MAML(model, 0.3, 1, adapt=["0.2", "1"]))


def test_other_convolutions_stay_torchs():
    model = network(nn.Conv2d(1, 4, 3, dilation=2, padding=2), nn.Conv2d(4, 2, 2, groups=2),
                    nn.Conv2d(2, 2, 2, stride=(1, 2)), nn.Conv2d(2, 2, (1, 2), padding="same"))  # fmt: skip
    check(fastmeta.MAML(model, 0.3, 1))


def test_no_grouped_convolution_is_left(monkeypatch):
    """Forward, inner steps and the chain of Hessian-vector products."""
    model, data = network(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, stride=2)), images()
    learner = fastmeta.MAML(model, 0.3, 2)

    def run():
        total = learner.loss(*data).sum() + learner(*data[:3]).square().sum()
        return torch.autograd.grad(total, list(learner.parameters()))

    with fastmeta.backend("triton"):
        left, ours = grouped_in(run, monkeypatch)
    force_tasks_at_once(monkeypatch, 2)
    with fastmeta.backend("reference"):
        grouped, plain = grouped_in(run, monkeypatch)
    assert left == set() and grouped == set(GROUPS)
    torch.testing.assert_close(ours, plain)


def test_autocast():
    """The convolutions are in the dtype of autocast, as torch's without vmap."""
    model, data = network(nn.Conv2d(1, 3, 3, padding=1)).float(), images()
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
