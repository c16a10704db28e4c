"""unroll under transforms, checkpoints, batched cotangents and autocast, its way back in another thread, and what it keeps."""

import threading

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from plain import sgd
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fastmeta
from harness.plain_unroll import D, plain_unroll

N = 6
pytestmark = pytest.mark.cpu


@pytest.fixture
def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(D)
    x, y = torch.randn(N, 4, dtype=D, requires_grad=True), torch.randint(0, 3, (N,))
    return net, x, y, torch.tensor(0.1, dtype=D, requires_grad=True)


def loss_of(net):
    return lambda p, x, y: F.cross_entropy(functional_call(net, p, (x,)), y)


def test_of_a_rate(problem):
    """Forward mode, torch.func.jvp and vmap, torch.compile and a checkpoint around the loop: the derivative of .backward()."""
    net, x, y, rate = problem
    loss = loss_of(net)

    def value(rate):
        optimiser = fastmeta.Adam(rate, eps=1e-2)
        return fastmeta.unroll(loss, net, (x, y), steps=3, optimiser=optimiser, outer=lambda p: loss(p, x, y))[0]

    (slope,) = torch.autograd.grad(value(rate), rate)
    one = torch.ones((), dtype=D)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(value(forward_ad.make_dual(rate.detach(), one))).tangent
    found = [
        tangent,
        torch.func.jvp(value, (rate,), (one,))[1],
        torch.vmap(torch.func.grad(value))(rate.detach()[None])[0],
        torch.autograd.grad(checkpoint(value, rate, use_reentrant=False), rate)[0],
        torch.autograd.grad(torch.compile(value, backend="eager")(rate), rate)[0],
    ]
    for other in found:
        torch.testing.assert_close(other.detach(), slope, rtol=1e-10, atol=0)


def test_batched_cotangents(problem):
    net, x, y, rate = problem
    after, _ = fastmeta.unroll(loss_of(net), net, (x, y), steps=3, optimiser=fastmeta.SGD(rate, 0.5))
    bias, each = after["2.bias"], torch.eye(3, dtype=D)
    found = torch.autograd.grad(bias, [rate, x], each, is_grads_batched=True, retain_graph=True)
    rows = [torch.autograd.grad(bias, [rate, x], row, retain_graph=True) for row in each]
    torch.testing.assert_close(list(found), [torch.stack(column) for column in zip(*rows, strict=True)])


def test_the_way_back_in_another_thread(problem):
    """As on CUDA, whose backward has threads of its own, where nodes are numbered anew: a loop in a loop, both with results of before."""
    net, x, y, rate = problem
    result, loss = rate.exp(), loss_of(net)

    def inner(unrolls):
        def function(p, x, y):
            scaled = lambda p, x, y: result * loss(p, x, y)  # noqa: E731
            if unrolls:
                return loss(fastmeta.unroll(scaled, p, (x, y), steps=2, optimiser=fastmeta.SGD(0.5))[0], x, y)
            return loss(plain_unroll(scaled, p, [(x, y)] * 2, sgd, lr=0.5)[0][-1], x, y)

        return function

    after, _ = fastmeta.unroll(inner(True), net, (x, y), steps=2, optimiser=fastmeta.SGD(0.3))
    truth = plain_unroll(inner(False), dict(net.named_parameters()), [(x, y)] * 2, sgd, lr=0.3)[0][-1]
    inputs, found = [rate, result, x, *net.parameters()], []

    def back():
        found.extend(torch.autograd.grad(loss(after, x, y), inputs, retain_graph=True))

    thread = threading.Thread(target=back)
    thread.start()
    thread.join()
    torch.testing.assert_close(found, list(torch.autograd.grad(loss(truth, x, y), inputs)))


class Held:
    """Counts the activations that graphs hold, and the most at a time."""

    now = most = 0

    def __init__(self, x):
        self.x, self.counts = x.detach(), x.shape == (N, 5)
        Held.now += self.counts
        Held.most = max(Held.most, Held.now)

    def __del__(self):
        Held.now -= self.counts


@pytest.mark.parametrize("keep", ["all", "sqrt"])
def test_no_graph_outlives_its_step(problem, keep):
    net, x, y, _ = problem
    most, loss = [], loss_of(net)
    for steps in (2, 12):
        Held.now = Held.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.x):
            value, _ = fastmeta.unroll(
                loss,
                net,
                (x, y),
                steps=steps,
                optimiser=fastmeta.SGD(0.1),
                keep=keep,
                outer=lambda p: loss(p, x, y),
            )
            assert Held.now == 0
            points = [len(p) for p in value.grad_fn.saved_tensors if p.shape[1:] == (5, 4)]
            value.backward()
        most.append(Held.most)
    assert most[0] == most[1] > 0
    assert (
        points == {"all": [12], "sqrt": [3]}[keep]
    )  # after the first, with the last for outer: after 4, 8 and 12 steps


def test_autocast_is_that_of_the_way_there():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    scale = nn.Linear(4, 4)
    x, y = torch.randn(N, 4), torch.randint(0, 3, (N,))
    loss = lambda p, x, y: F.cross_entropy(functional_call(net, p, (scale(x),)), y)  # noqa: E731
    found = []
    for ours in (True, False):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=ours):
            scale(x)  # autocast may keep its parameters from here on
            if ours:
                after, _ = fastmeta.unroll(loss, net, (x, y), steps=3, optimiser=fastmeta.SGD(0.3))
            else:
                after = plain_unroll(loss, dict(net.named_parameters()), [(x, y)] * 3, sgd, lr=0.3)[0][-1]
            value = loss(after, x, y)
        found.append(torch.autograd.grad(value, [*net.parameters(), *scale.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_half_precision_has_state_in_float32():
    net = nn.Linear(4, 3).bfloat16()
    batch = torch.randn(N, 4).bfloat16(), torch.randint(0, 3, (N,))
    found, state = fastmeta.unroll((net, "cross_entropy"), net, batch, steps=2, optimiser=fastmeta.Adam(0.1))
    assert found["weight"].dtype is torch.bfloat16 and state["exp_avg"]["weight"].dtype is torch.float32
    (grad,) = torch.autograd.grad(found["weight"].float().sum(), net.weight)
    assert grad.dtype is torch.bfloat16 and grad.isfinite().all()
