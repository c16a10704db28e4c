"""The fused convolutional networks of MAML and Meta-SGD against the general engine, the plain loop and finite differences."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import fastmeta
from fastmeta import _C
from fastmeta.networks import convnet
from harness.compare import check_against_reference, check_threads
from harness.conv_networks import D, Losses, episode, network
from harness.learner_cases import general


def check(learner, data, dtype=D):
    """Losses and all gradients as on the backend "reference", the general engine; in float32 with eight draws of the images."""
    assert isinstance(learner._plan().network, convnet.ConvNet)
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
    direct, ran = convnet.direct, []

    def counted(name, *args):
        found = direct(name, *args)
        ran.extend([name] if found is not None else [])
        return found

    monkeypatch.setattr(convnet, "direct", counted)
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


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("kind", ["number", "per step", "per parameter", "per step and parameter"])
def test_rates_dtypes_and_instruction_sets(isa, dtype, kind):
    torch.manual_seed(1)
    model, steps, before = network(2, 20, 14, 3, norm=4 if kind == "number" else True), 2, _C.isa()
    if "parameter" in kind:
        learner = fastmeta.MetaSGD(model, 0.05, steps)
        if "step" in kind:
            learner.alpha = nn.ParameterList(
                [nn.Parameter(torch.stack([a.detach(), a.detach() / 2])) for a in learner.alpha]
            )
    else:
        learner = fastmeta.MAML(
            model, 0.05 if kind == "number" else nn.Parameter(torch.full((steps,), 0.05, dtype=D)), steps
        )
    learner = learner.to(D)
    try:
        _C.set_isa(isa)
        check(learner, episode(model, 14), dtype)
    finally:
        _C.set_isa(before)


def conv4():
    torch.manual_seed(2)
    return network(4, 8, 28, ways=5)


def test_steps_that_are_not_kept_are_computed_again():
    """Of 25 images the steps outgrow what is kept."""
    model = network(2, 32, 28)
    check(fastmeta.MAML(model, 0.01, 4), episode(model, 28, tasks=2, shots=25))


def test_conv4_against_finite_differences():
    """Batch norm, max-pool with ties, second order: the loss along a direction of all parameters."""
    model = conv4()
    data = episode(model, 28, tasks=2, shots=5)
    data[0][:, 0] = 0.5  # all pixels of an image tie
    data[2][..., :14, :] = data[2][..., :1, :1]
    losses = Losses(fastmeta.MAML(model, 0.1, 2), data)
    theta = [p.detach().clone().requires_grad_() for p in losses.parameters()]
    direction = [torch.randn_like(p) for p in theta]
    with fastmeta.backend("ext"):
        grads = torch.autograd.grad(losses.at(*theta).sum(), theta)
        slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        step = 1e-6
        ahead, behind = (
            losses.at(*(p.detach() + s * d for p, d in zip(theta, direction, strict=True))).sum() for s in (step, -step)
        )
    assert ((ahead - behind) / (2 * step) - slope).abs() < 1e-6 * slope.abs()


def test_conv4_against_the_plain_loop(calls):
    """Fused, general and plain autograd, in float64."""
    model = conv4()
    data = episode(model, 28, tasks=3, shots=5)
    learner = fastmeta.MAML(model, 0.1, 3)

    def plain(sx, sy, qx, qy):
        theta = dict(model.named_parameters())
        for _ in range(3):
            loss = F.cross_entropy(functional_call(model, theta, (sx,)), sy)
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {name: p - 0.1 * g for (name, p), g in zip(theta.items(), grads, strict=True)}
        return F.cross_entropy(functional_call(model, theta, (qx,)), qy)

    found = {}
    for way in ("plain", "general", "fused"):
        losses = (
            torch.stack([plain(*task) for task in zip(*data, strict=True)]) if way == "plain" else
            (learner if way == "fused" else general(learner)).loss(*data)
        )  # fmt: skip
        found[way] = [losses.detach(), *torch.autograd.grad(losses.sum(), list(model.parameters()))]
    assert len(calls) == 1
    scale = max(x.abs().max() for x in found["plain"])
    for way in ("general", "fused"):
        for ours, theirs in zip(found[way], found["plain"], strict=True):
            assert (ours - theirs).abs().max() < 1e-9 * scale, way


def test_predictions(calls):
    model = conv4()
    data = episode(model, 28)
    learner = fastmeta.MAML(model, 0.1, 2)
    theta = list(model.parameters())
    found = learner(*data[:3])
    assert calls == ["conv_adapt", "conv_forward"]
    expected = general(learner)(*data[:3])
    with torch.no_grad():
        assert torch.equal(learner(*data[:3]), found)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    grads = (torch.autograd.grad(y.sin().sum(), theta) for y in (found, expected))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_ignored_examples():
    model = network()
    data = episode(model)
    data[1][0, 2:] = data[3][1, :] = -100
    check(fastmeta.MAML(model, 0.1, 2), data)


def test_a_far_mean():
    """Activations far from 0 and of very different images: the variance does not cancel."""
    torch.manual_seed(3)
    model = network(2, 16, 12, relu=False)
    with torch.no_grad():
        model[0].bias.fill_(300)
    data = episode(model, 12)
    data[0][:, 0] += 30
    check(fastmeta.MAML(model, 0.01, 1), data, torch.float32)


def test_threads_do_not_change_a_bit():
    model = network(2, 20, 14)
    data = episode(model, 14, tasks=7)
    losses = Losses(fastmeta.MAML(model, 0.1, 3), data)

    def compute():
        value = losses()
        return [value.detach(), *torch.autograd.grad(value.sum(), list(losses.parameters()))]

    check_threads(compute)


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
    assert isinstance(fastmeta.MAML(network())._plan().network, convnet.ConvNet)
    if kind == "running statistics":
        with pytest.raises(ValueError, match="MAML: batch norm must use the statistics of each batch"):
            fastmeta.MAML(OTHERS[kind]())
        return
    assert not isinstance(fastmeta.MAML(OTHERS[kind]())._plan().network, convnet.ConvNet)


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


def test_a_nan_stays_in_its_task():
    model = network(norm=False)
    data = episode(model)
    data[0][1, 0, 0, 4, 4] = torch.nan
    losses = fastmeta.MAML(model, 0.1, 1).loss(*data)
    assert losses.isnan().tolist() == [False, True, False]
