"""IMAML against closed forms, and its way back against finite differences of the optimum."""

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta.learners.imaml import conjugate_gradient
from harness.engine import kernels_of
from harness.plain_loops import D, check_slope

MODELS = {
    "native": lambda width, outputs: nn.Linear(width, outputs),
    "general": lambda width, outputs: nn.Sequential(nn.Linear(width, outputs), nn.Identity()),
}


def test_conjugate_gradient():
    """Solved in as many steps as there are unknowns; 0 for b = 0, and where A is not positive definite."""
    root, b = torch.randn(4, 6, 6, dtype=D), torch.randn(4, 6, dtype=D)
    a = root @ root.mT + torch.eye(6, dtype=D)
    b[1], a[2] = 0, -a[2]
    x = conjugate_gradient(lambda v: (a @ v.unsqueeze(2)).squeeze(2), b, 20)
    torch.testing.assert_close(x[[0, 1, 3]], torch.linalg.solve(a, b)[[0, 1, 3]], rtol=1e-9, atol=1e-9)
    assert not x[1].any() and not x[2].any()


def test_conjugate_gradient_stops_at_little_curvature():
    """Before the direction that shows it: here the second, of curvature 0.2 and then of 0.05, behind one of curvature 1."""
    a = torch.stack([torch.diag(torch.tensor([1.0, bend], dtype=D)) for bend in (0.2, 0.05)])
    b = torch.tensor([[0.0, 1.0]] * 2, dtype=D)
    x = conjugate_gradient(lambda v: (a @ v.unsqueeze(2)).squeeze(2), b, 2, least=0.1)
    torch.testing.assert_close(x, torch.tensor([[0.0, 5.0], [0.0, 0.0]], dtype=D))


@pytest.mark.parametrize(("left", "slope"), [(0.5, 2.0), (0.05, 0.0)])
def test_a_nearly_singular_system_gives_no_huge_meta_gradient(left, slope):
    """The support's loss has the curvature `left` - 1, and so leaves `left` of the penalty's; `slope` is dphi / dtheta."""
    model = nn.Linear(1, 1, bias=False).to(D)
    learner = fastmeta.IMAML(model, 0.0, 1, strength=1.0, loss=lambda z, _: (left - 1) * z.square().sum() / 2)
    ones = torch.ones(1, 1, 1, dtype=D)
    (found,) = torch.autograd.grad(learner.loss(ones, ones, ones, ones).sum(), [model.weight])
    torch.testing.assert_close(found, (left - 1) * model.weight.detach() * slope)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("tasks", "chunk"), [(1, None), (5, None), (5, 4)])
def test_linear_regression_equals_the_closed_form(kind, tasks, chunk):
    """The optimum, the loss there and all gradients by solving linear systems."""
    strength, width = 0.7, 4
    model = MODELS[kind](width, 1).to(D)
    learner = fastmeta.IMAML(model, 0.1, 500, strength=strength, cg_steps=12, loss="mse", task_chunk=chunk)
    assert kernels_of(learner) == ("mlp" if kind == "native" else None)
    xs, xq = (torch.randn(tasks, n, width, dtype=D, requires_grad=True) for n in (6, 7))
    ys, yq = (torch.randn(tasks, n, 1, dtype=D, requires_grad=True) for n in (6, 7))
    weight, bias = model.parameters()

    def wide(x):
        return torch.cat([x, torch.ones_like(x[..., :1])], -1)

    theta = torch.cat([weight, bias.unsqueeze(1)], 1).mT
    a = 2 / 6 * wide(xs).mT @ wide(xs) + strength * torch.eye(width + 1, dtype=D)
    phi = torch.linalg.solve(a, 2 / 6 * wide(xs).mT @ ys + strength * theta)
    outputs = wide(xq) @ phi
    closed = (outputs - yq).square().mean((1, 2))
    torch.testing.assert_close(learner(xs, ys, xq), outputs, rtol=1e-9, atol=1e-9)
    ours, inputs, scale = learner.loss(xs, ys, xq, yq), [weight, bias, xs, ys, xq, yq], torch.rand(tasks, dtype=D)
    torch.testing.assert_close(ours, closed, rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad((closed * scale).sum(), inputs)
    for found, truth in zip(torch.autograd.grad((ours * scale).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("adapt", [None, ["2"]])
def test_meta_gradient_by_finite_differences(adapt):
    """Of the optimum of a net with hidden units, found to rounding; parameters that stay are trained too."""
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).to(D)
    learner = fastmeta.IMAML(net, 0.4, 400, strength=1.0, cg_steps=60, adapt=adapt)
    y = torch.tensor([0, 1, 2, 0]).expand(4, 4)
    data = (torch.randn(4, 4, 3, dtype=D), y, torch.randn(4, 4, 3, dtype=D), y)
    check_slope(lambda: learner.loss(*data).sum(), list(learner.parameters()), (1e-5,), rtol=1e-7)
