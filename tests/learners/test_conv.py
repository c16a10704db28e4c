"""The fused convolutional networks of MAML and Meta-SGD against the general engine and the plain loop."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import fastmeta
from fastmeta import ConvBlock
from harness.compare import check_against_reference
from harness.conv_cases import module, problems
from harness.conv_learners import episode, network
from harness.engine import kernels_of
from harness.learner_cases import Loss
from harness.plain_loops import D, same_as_the_plain_loop


def conv4():
    torch.manual_seed(2)
    return network((ConvBlock(),) * 4, size=28, channels=8)


def losses_at(learner, data):
    """The losses as a function of images of support and query and of the parameters; and those."""
    loss, names = Loss(learner), [f"learner.{name}" for name, _ in learner.named_parameters()]

    def at(sx, qx, *values):
        return functional_call(
            loss, dict(zip(names, values, strict=True)), (sx.detach(), data[1], qx.detach(), data[3])
        )

    return at, [data[0], data[2], *(p.detach() for p in learner.parameters())]


@settings(max_examples=60)
@given(problems(), st.integers(0, 3), st.booleans(), st.sampled_from(["number", "learned", "each"]))
def test_any_network(p, steps, first_order, rate):
    """As on the backend "reference", the general engine."""
    model = module(p, 0)
    if rate == "each":
        learner = fastmeta.MetaSGD(model, 0.01, steps, loss=p.loss, first_order=first_order).to(D)
    else:
        lr = 0.01 if rate == "number" else nn.Parameter(torch.tensor([0.01] * steps, dtype=D))
        learner = fastmeta.MAML(model, lr, steps, loss=p.loss, first_order=first_order)
    assert kernels_of(learner) == "conv"
    check_against_reference(*losses_at(learner, (p.x, p.y, p.like_x(6), p.targets(6))), "ext", cancelling=True)


class Block(nn.Module):
    """Its norm comes first among its parameters."""

    def __init__(self, of_input, outputs, norm):
        super().__init__()
        self.norm, self.linear = norm, nn.Linear(of_input, outputs)

    def forward(self, x):
        return torch.relu(self.norm(self.linear(x)))


class Net(nn.Module):
    """The model of learn2learn's meta_mnist."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 5, 1), nn.Conv2d(3, 5, 3, 1)
        self.fc1, self.fc2 = nn.Linear(2 * 2 * 5, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2, 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2, 2)
        return F.log_softmax(self.fc2(F.relu(self.fc1(x.view(-1, 2 * 2 * 5)))), dim=1)


def batch_norm(size, **options):
    return nn.BatchNorm1d(size, track_running_stats=False, **options)


LINES = {
    "batch norm": lambda: nn.Sequential(
        nn.Flatten(), Block(256, 7, batch_norm(7, eps=1e-3)), Block(7, 5, batch_norm(5)), nn.Linear(5, 4)
    ),
    "layer norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(256, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 4, bias=False)
    ),
    "kernels of 5": Net,
    "hidden layers": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 4, stride=4, padding=1), nn.Flatten(),
        nn.Linear(8, 5), batch_norm(5), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LINES)
def test_linear_layers_with_norms_and_any_kernels(calls, kind):
    torch.manual_seed(5)
    model, data = LINES[kind]().to(D), episode(16)
    same_as_the_plain_loop(fastmeta.MAML(model, 0.1, 3), data)
    assert calls == ["conv_meta_loss", "conv_adapt", "conv_forward"]
    for learner in (
        fastmeta.MAML(model, nn.Parameter(torch.tensor([0.1, 0.2], dtype=D)), 2),
        fastmeta.MetaSGD(model, 0.1, 2).to(D),
    ):
        assert kernels_of(learner) == "conv"
        check_against_reference(*losses_at(learner, data), "ext", cancelling=True)
        found = {}
        for chosen in ("auto", "reference"):
            with fastmeta.backend(chosen):
                learner.zero_grad()
                losses, outputs = learner.backward(*data, return_outputs=True)
                found[chosen] = [losses, outputs, *(p.grad.clone() for p in learner.parameters())]
        torch.testing.assert_close(found["auto"], found["reference"], rtol=1e-9, atol=1e-10)
    if kind != "kernels of 5":  # whose rows become more
        with pytest.raises((ValueError, RuntimeError)):
            fastmeta.MAML(model, 0.1, 1).loss(*[x.repeat(1, 1, 1, 1, 3) if x.is_floating_point() else x for x in data])


def test_conv4_against_the_plain_loop(calls):
    """Batch norm, max-pool with ties, second order."""
    data = episode(28, tasks=2, shots=5)
    data[0][:, 0] = 0.5  # all pixels of an image tie
    data[2][..., :14, :] = data[2][..., :1, :1]
    data[1][0, 2:] = data[3][1, :3] = -100
    same_as_the_plain_loop(fastmeta.MAML(conv4(), 0.1, 3), data)
    assert calls == ["conv_meta_loss", "conv_adapt", "conv_forward"]


def test_a_far_mean():
    """Activations far from 0 and of very different images: the variance does not cancel."""
    torch.manual_seed(3)
    model = network((ConvBlock(relu=False),) * 2, size=12, channels=16)
    with torch.no_grad():
        model[0].bias.fill_(300)
    data = episode(12)
    data[0][:, 0] += 30
    at, tensors = losses_at(fastmeta.MAML(model, 0.01, 1), data)
    sx, qx, *values = (t.float() for t in tensors)
    check_against_reference(at, lambda: [*(x + 0.1 * torch.randn_like(x) for x in (sx, qx)), *values], "ext")


def test_second_derivatives_and_transforms_leave_the_kernel(calls):
    at, (sx, qx, *theta) = losses_at(fastmeta.MAML(network("one block", size=6), 0.1, 1), episode(6, tasks=2))
    leaves = [p.clone().requires_grad_() for p in theta]
    grads = torch.autograd.grad(at(sx, qx, *leaves).sum(), leaves, create_graph=True)
    products = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
    assert len(calls) == 1

    def square(*values):
        first = torch.func.grad(lambda v: at(sx, qx, *v).sum())(values)
        return sum(g.square().sum() for g in first)

    expected = torch.func.grad(square, argnums=tuple(range(len(theta))))(*theta)
    torch.testing.assert_close(products, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda model: fastmeta.Reptile(model, 0.1, 3), ["conv_adapt", "conv_loss"]),
        (lambda model: fastmeta.Reptile(model, 0.1, 3, optimiser="adam"), [*["conv_grad"] * 3, "conv_loss"]),
        (lambda model: fastmeta.IMAML(model, 0.1, 3, cg_steps=2), [*["conv_grad"] * 3, "conv_loss", "conv_grad"]),
    ],
    ids=["Reptile", "Reptile by Adam", "IMAML"],
)
@pytest.mark.parametrize("tasks", [1, 3])
def test_inner_steps_and_query_of_learners_with_a_way_back_of_their_own(calls, make, expected, tasks):
    """One task, which has no task axis, too."""
    learner, data = make(network("group norm", size=6, channels=4)), episode(6, tasks=tasks)
    found = {}
    for chosen in ("reference", "auto"):
        with fastmeta.backend(chosen):
            learner.zero_grad()
            loss = learner.loss(*data)
            loss.sum().backward()
        found[chosen] = [loss.detach(), *(p.grad.clone() for p in learner.parameters())]
    assert calls == expected
    atol = (
        1e-9 if "conv_adapt" in expected or len(expected) > 4 else 1e-7
    )  # Adam divides the rounding of a gradient of 0 by 1e-8
    torch.testing.assert_close(found["auto"], found["reference"], rtol=1e-8, atol=atol)
    with fastmeta.backend("reference"):
        outputs = learner(*data[:3])
    torch.testing.assert_close(learner(*data[:3]), outputs, rtol=1e-8, atol=1e-9)
    assert calls[-1] == "conv_forward"


@pytest.mark.parametrize(
    ("steps", "first_order", "norm"), [(0, False, "batch norm"), (2, False, "batch norm"), (2, True, "group norm")]
)
def test_proto_maml_runs_whole(calls, steps, first_order, norm):
    """With the head's parameters for each task, and the gradient through the prototypes; not where a parameter is frozen."""
    torch.manual_seed(1)
    layers = [*network("one block" if norm == "batch norm" else norm, size=6, channels=4)][:-1]
    learner, data = fastmeta.ProtoMAML(nn.Sequential(*layers), 4, 0.1, steps, first_order=first_order), episode(6)
    data[1][:] = torch.arange(4)
    data[0].requires_grad_()
    found = {}
    for chosen in ("reference", "auto"):
        with fastmeta.backend(chosen):
            losses, outputs = learner.loss(*data, return_outputs=True)
            wanted = [data[0], *learner.parameters()]
            found[chosen] = [losses, outputs, *torch.autograd.grad(losses.sum(), wanted), learner(*data[:3])]
            again = torch.autograd.grad(learner.loss(*data).sum(), learner.encoder[0].weight, create_graph=True)[0]
            found[chosen] += torch.autograd.grad(again.square().sum(), [data[0], learner.encoder[0].weight])
    torch.testing.assert_close(found["auto"], found["reference"], rtol=1e-8, atol=1e-9)
    assert calls.count("conv_meta_loss") == 2 and calls.count("conv_adapt") == 1
    learner.encoder[0].bias.requires_grad_(False)
    frozen = learner.loss(*data)
    with fastmeta.backend("reference"):
        torch.testing.assert_close(frozen, learner.loss(*data), rtol=1e-8, atol=1e-9)
    assert calls.count("conv_meta_loss") == 2


def test_a_traced_call_is_no_constant():
    learner, data = fastmeta.MAML(network("one block", size=6), 0.1, 1), episode(6, tasks=2)
    graph = make_fx(lambda *images: learner.loss(images[0], data[1], images[1], data[3]))(data[0], data[2])
    others = [data[0] + 1, data[2] + 1]
    torch.testing.assert_close(graph(*others), learner.loss(others[0], data[1], others[1], data[3]))
