"""The losses of pytorch-metric-learning, where it is installed: their values and gradients."""

import importlib
import math

import pytest
import torch
from torch.nn.functional import normalize

from fastmeta import heads
from harness.cases import randn
from harness.compare import values_and_grads
from harness.installed_peers import peer

pytestmark = pytest.mark.cpu
LABELS = torch.randint(0, 5, (24,), generator=torch.Generator().manual_seed(0))
PAIRS = torch.arange(12).repeat(2)


@pytest.fixture
def theirs():
    peer("pytorch_metric_learning")
    return importlib.import_module("pytorch_metric_learning.losses")


@pytest.mark.parametrize(
    ("name", "options", "ours", "labels"),
    [
        ("NTXentLoss", {"temperature": 0.2}, lambda z: heads.NTXent(0.2)(z[:12], z[12:]), PAIRS),
        ("SupConLoss", {"temperature": 0.2}, lambda z: heads.SupCon(0.2)(z, LABELS), LABELS),
        ("NCALoss", {"softmax_scale": 2}, lambda z: heads.NCA(0.5)(normalize(z, dim=-1), LABELS), LABELS),
    ],
)
def test_of_pairs(theirs, name, options, ours, labels):
    z, loss = randn(24, 6), getattr(theirs, name)(**options)
    torch.testing.assert_close(values_and_grads(ours, [z]), values_and_grads(lambda z: loss(z, labels), [z]))


@pytest.mark.parametrize(
    ("name", "options", "made", "own"),
    [
        ("ProxyNCALoss", {"softmax_scale": 2}, heads.ProxyNCA, (0.5,)),
        ("CosFaceLoss", {"margin": 0.3, "scale": 16}, heads.CosFace, (0.3, 16.0)),
        ("ArcFaceLoss", {"margin": math.degrees(0.5), "scale": 16}, heads.ArcFace, (0.5, 16.0)),
    ],
)
def test_of_proxies(theirs, name, options, made, own):
    z, loss, head = randn(24, 6), getattr(theirs, name)(5, 6, **options).double(), made(5, 6, *own).double()
    weight = loss.proxies if name == "ProxyNCALoss" else loss.W.mT
    head.weight = torch.nn.Parameter(weight.detach().clone())
    truth = values_and_grads(lambda z: loss(z, LABELS), [z])
    torch.testing.assert_close(values_and_grads(lambda z: head(z, LABELS), [z]), truth)
