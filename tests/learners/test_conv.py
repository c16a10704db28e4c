"""The fused convolutional networks of MAML and Meta-SGD against the general engine and the plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import fastmeta
from fastmeta.learners import _conv
from harness.compare import check_against_reference
from harness.conv_networks import D, Losses, episode, network
from harness.engine import kernels_of
from harness.plain_loops import same_as_the_plain_loop


def check(learner, data, dtype=D):
    """Losses and all gradients as on the backend "reference", the general engine; in float32 with eight draws of the images."""
    assert kernels_of(learner) == "conv"
    values = [p.detach().to(dtype) for p in learner.parameters()]
    images = [data[0].to(dtype), data[2].to(dtype)]
    losses = Losses(learner, data)

    def at(*tensors):
        losses.data = [tensors[0].detach(), data[1], tensors[1].detach(), data[3]]
        return losses.at(*tensors[2:])

    def drawn():
        return [*(x + 0.1 * torch.randn_like(x) for x in images), *values]

    check_against_reference(at, [*images, *values] if dtype == D else drawn, "ext")


@pytest.fixture
def calls(monkeypatch):
    """The ops whose native kernels ran."""
    direct, ran = _conv.direct, []

    def counted(name, *args):
        found = direct(name, *args)
        ran.extend([name] if found is not None else [])
        return found

    monkeypatch.setattr(_conv, "direct", counted)
    return ran


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 33), st.integers(1, 3), st.sampled_from([False, True, 1, 2, 4]), st.booleans(),
    st.booleans(), st.booleans(), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.integers(7, 20), st.integers(0, 3),
    st.integers(1, 4), st.integers(2, 5), st.sampled_from(["cross_entropy", "mse"]), st.booleans(), st.integers(0, 2**16),
)  # fmt: skip
def test_any_network(blocks, channels, inputs, norm, affine, relu, pool, stride, padding, bias, size, steps, tasks, shots,
                     loss, first_order, seed):  # fmt: skip
    torch.manual_seed(seed)
    try:
        model = network(blocks, channels, size, inputs, norm=norm, affine=affine, relu=relu, pool=pool, stride=stride,
                        padding=padding, bias=bias)  # fmt: skip
        data = episode(model, size, tasks, shots, loss=loss)
        model(data[0][0])
    except (RuntimeError, ValueError):
        return  # no pixel is left
    lr = nn.Parameter(torch.tensor(0.01, dtype=D))
    check(fastmeta.MAML(model, lr, steps, loss=loss, first_order=first_order), data)


def conv4():
    torch.manual_seed(2)
    return network(4, 8, 28, ways=5)


def test_conv4_against_the_plain_loop(calls):
    """Batch norm, max-pool with ties, second order."""
    model = conv4()
    data = episode(model, 28, tasks=2, shots=5)
    data[0][:, 0] = 0.5  # all pixels of an image tie
    data[2][..., :14, :] = data[2][..., :1, :1]
    data[1][0, 2:] = data[3][1, :3] = -100
    same_as_the_plain_loop(fastmeta.MAML(model, 0.1, 3), data)
    assert calls == ["conv_meta_loss", "conv_adapt", "conv_forward"]


def test_a_far_mean():
    """Activations far from 0 and of very different images: the variance does not cancel."""
    torch.manual_seed(3)
    model = network(2, 16, 12, relu=False)
    with torch.no_grad():
        model[0].bias.fill_(300)
    data = episode(model, 12)
    data[0][:, 0] += 30
    check(fastmeta.MAML(model, 0.01, 1), data, torch.float32)


def test_second_derivatives_and_transforms_leave_the_kernel(calls):
    model = network(1, 3, 6)
    losses = Losses(fastmeta.MAML(model, 0.1, 1), episode(model, 6, tasks=2))
    theta = [p.detach().clone().requires_grad_() for p in losses.parameters()]
    grads = torch.autograd.grad(losses.at(*theta).sum(), theta, create_graph=True)
    products = torch.autograd.grad(sum(g.square().sum() for g in grads), theta)
    assert len(calls) == 1

    def square(*values):
        first = torch.func.grad(lambda v: losses.at(*v).sum())(values)
        return sum(g.square().sum() for g in first)

    expected = torch.func.grad(square, argnums=tuple(range(len(theta))))(*(p.detach() for p in theta))
    for ours, theirs in zip(products, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_a_traced_call_is_no_constant():
    model = network(1, 3, 6)
    learner, data = fastmeta.MAML(model, 0.1, 1), episode(model, 6, tasks=2)
    graph = make_fx(lambda *images: learner.loss(images[0], data[1], images[1], data[3]))(data[0], data[2])
    others = [data[0] + 1, data[2] + 1]
    torch.testing.assert_close(graph(*others), learner.loss(others[0], data[1], others[1], data[3]))


def change(model, place, module):
    return nn.Sequential(*model[:place], module, *model[place + 1 :])


def frozen():
    model = network()
    model[0].weight.requires_grad_(False)
    return model


OTHERS = {
    "5 x 5": lambda: change(network(), 0, nn.Conv2d(1, 5, 5, padding=2)),
    "dilation": lambda: change(network(), 0, nn.Conv2d(1, 5, 3, padding=2, dilation=2)),
    "groups": lambda: change(network(), 4, nn.Conv2d(5, 5, 3, padding=1, groups=5)),
    "reflection": lambda: change(network(), 0, nn.Conv2d(1, 5, 3, padding=1, padding_mode="reflect")),
    "uneven stride": lambda: change(network(), 0, nn.Conv2d(1, 5, 3, (1, 2), padding=1)),
    "running statistics": lambda: change(network(), 1, nn.BatchNorm2d(5)),
    "instance norm": lambda: change(network(), 1, nn.InstanceNorm2d(5)),
    "leaky": lambda: change(network(), 2, nn.LeakyReLU()),
    "pool of 3": lambda: change(network(), 3, nn.MaxPool2d(3)),
    "overlapping": lambda: change(network(), 3, nn.MaxPool2d(2, 1)),
    "ceiling": lambda: change(network(), 3, nn.MaxPool2d(2, ceil_mode=True)),
    "frozen": frozen,
    "two linear layers": lambda: nn.Sequential(network(), nn.Linear(4, 3)),
    "no convolution": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_not_taken(kind):
    assert kernels_of(fastmeta.MAML(network())) == "conv"
    if kind == "running statistics":
        with pytest.raises(ValueError, match="MAML: batch norm must use the statistics of each batch"):
            fastmeta.MAML(OTHERS[kind]())
        return
    assert kernels_of(fastmeta.MAML(OTHERS[kind]())) != "conv"


def test_calls_that_the_kernel_cannot_take_run_in_the_general_engine(calls):
    model = network()
    data = episode(model)
    learner = fastmeta.MAML(model, 0.1, 1)
    expected = learner.loss(*data)
    assert len(calls) == 1
    with fastmeta.backend("reference"):
        torch.testing.assert_close(learner.loss(*data), expected)
    with torch.autocast("cpu", torch.bfloat16):
        single = fastmeta.MAML(network().float(), 0.1, 1)
        single.loss(*(x.float() if x.is_floating_point() else x for x in data))
    assert len(calls) == 1
    for beyond in (network(1, pool=False, padding=3), network(9, pool=False)):
        fastmeta.MAML(beyond, 0.1, 1).loss(*data)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fastmeta.MAML(network(1, pool=False, padding=0, size=3), 0.1, 1).loss(*episode(model, 3, shots=1))
    with pytest.raises(RuntimeError, match="size"):
        learner.loss(*episode(model, 3))
