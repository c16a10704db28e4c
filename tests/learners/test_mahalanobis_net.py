"""MahalanobisNet against its paper's formula, class by class, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradgradcheck

import fastmeta
from harness.plain_loops import D, losses_of

pytestmark = pytest.mark.cpu
LABELS = torch.tensor([[0, 1, 2, 1, 0, 1], [2, 2, 1, 0, 2, 0]])  # of one, two and three examples


def covariance(x):
    return torch.cov(x.T) if len(x) > 1 else x.new_zeros(x.shape[1], x.shape[1])


def plain(learner, sx, sy, qx, ways=3):
    """log p of the query, by inverses."""
    found = []
    for x, y, q in zip(sx, sy, qx, strict=True):
        support, query, logits = learner.encoder(x), learner.encoder(q), []
        for k in range(ways):
            own = support[y == k]
            share = len(own) / (len(own) + 1)
            shrunk = share * covariance(own) + (1 - share) * covariance(support)
            apart = query - own.mean(0)
            precision = torch.inverse(shrunk + learner.beta * torch.eye(len(shrunk), dtype=D))
            logits.append(-((apart @ precision) * apart).sum(1) / learner.temperature)
        found.append(torch.stack(logits, 1).log_softmax(1))
    return torch.stack(found)


@pytest.mark.parametrize("features", [5, 25])  # by covariances, by their rows
@pytest.mark.parametrize("offset", [0, 1e5])
def test_equals_the_formula(offset, features):
    temperature = nn.Parameter(torch.tensor([0.7], dtype=D))
    learner = fastmeta.MahalanobisNet(nn.Linear(4, features).to(D), beta=0.3, temperature=temperature)
    nn.init.constant_(learner.encoder.bias, offset)
    sx, qx, qy = torch.randn(2, 6, 4, dtype=D), torch.randn(2, 3, 4, dtype=D), torch.tensor([[0, 2, 1], [1, -100, 0]])
    expected = plain(learner, sx, LABELS, qx)
    torch.testing.assert_close(learner(sx, LABELS, qx), expected)
    losses, plainly = learner.loss(sx, LABELS, qx, qy), losses_of(expected, qy, F.nll_loss)
    torch.testing.assert_close(losses, plainly)
    weights = [learner.encoder.weight, temperature]
    found = (torch.autograd.grad(x.sum(), weights) for x in (losses, plainly))
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)
    for x in (sx, qx):
        x.requires_grad_()
    assert offset or gradgradcheck(lambda *x: learner.loss(x[0], LABELS, x[1], qy), (sx, qx), fast_mode=True)


def test_one_shot_and_classes_alone():
    """Of one example each, S alone is shrunk; of one example in all there is none: ProtoNet's distances over beta."""
    learner = fastmeta.MahalanobisNet(nn.Identity(), beta=2.0)
    sx, qx = torch.randn(1, 3, 4, dtype=D), torch.randn(1, 2, 4, dtype=D)
    y = torch.tensor([[1, 0, 2]])
    torch.testing.assert_close(learner(sx, y, qx), plain(learner, sx, y, qx))
    same = sx[:, :1].expand(1, 3, 4)
    torch.testing.assert_close(learner(same, y, qx).exp(), torch.full((1, 2, 3), 1 / 3, dtype=D))
    assert torch.equal(learner(sx[:, :1], y[:, 1:2], qx), torch.zeros(1, 2, 1, dtype=D))


def test_large_covariances_leave_float32_its_digits():
    """Of more features than rows, and a query among the support."""
    learner, x = fastmeta.MahalanobisNet(nn.Identity(), temperature=1e4), 30 * torch.randn(1, 6, 128)
    q = torch.cat([30 * torch.randn(1, 3, 128), x[:, :2]], 1)
    expected = learner(x.double(), LABELS[:1], q.double())
    torch.testing.assert_close(learner(x, LABELS[:1], q).double(), expected, rtol=1e-4, atol=1e-4)


def test_what_its_precision_cannot_hold_is_nan_and_low_precision_is_widened():
    """NaN for the task, not for others."""
    learner = fastmeta.MahalanobisNet(nn.Identity())
    x, q = torch.randn(2, 6, 8), torch.randn(2, 3, 8)
    expected = learner(x.double(), LABELS, q.double())
    torch.testing.assert_close(learner(x, LABELS, q).double(), expected, rtol=1e-5, atol=1e-5)
    half = learner(x.bfloat16(), LABELS, q.bfloat16())
    assert half.dtype == torch.bfloat16 and (half - expected).norm() < 0.03 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(learner(x, LABELS, q).double(), expected, rtol=1e-5, atol=1e-5)
    x[1, 0, 0] = torch.nan
    found = learner(x, LABELS, q)
    assert found[1].isnan().all() and torch.equal(found[0], learner(x[:1], LABELS[:1], q[:1])[0])
    assert fastmeta.MahalanobisNet(nn.Identity(), beta=1e-30)(x[:1] * 1e10, LABELS[:1], q[:1]).isnan().all()
