"""The programs of fastmeta.unroll: its gradients are those of the plain loops of examples/plain.py, in float64, and all run."""

import re

import distill
import pytest
import reweight
import torch
from letters import Letters, network
from plain import WAYS

from harness import forks
from harness.places import ROOT

D = torch.float64


def weights(seed):
    torch.manual_seed(seed)
    return {name: p.detach() for name, p in network(3, width=8).to(D).named_parameters()}


def letters(n):
    return Letters(torch.rand(n, 1, 28, 28, dtype=D), torch.arange(n) % 3)


def same(value, inputs):
    """value(way) and its gradients to the inputs, by each way."""
    inputs = list(inputs)
    found = {}
    for way in WAYS:
        loss = value(way)
        found[way] = [loss, *torch.autograd.grad(loss.sum(), inputs)]
        assert all(g.any() for g in found[way])
    for way in ("autograd", "checkpoint"):
        torch.testing.assert_close(found["unroll"], found[way], rtol=1e-9, atol=1e-12)


def test_distilled_images_and_rate():
    net, (images, labels) = network(3, width=8).to(D), letters(6)
    rate = torch.tensor(0.1, dtype=D, requires_grad=True)
    given = net, weights(0), weights(1), images.requires_grad_(), labels, rate, 4
    same(lambda way: distill.matching(way, *given), [images, rate])


def test_weights_of_examples():
    net, start = network(3, width=8).to(D), torch.zeros(5, dtype=D, requires_grad=True)
    batch, clean = letters(5), letters(3)
    same(lambda way: reweight.clean_loss(way, net, start, batch, clean, 0.1, 3), [start])


@pytest.mark.parametrize("way", ["unroll", "autograd"])
@pytest.mark.parametrize(
    ("program", "rows"),
    [
        ("distill.py --steps 2 --classes 3 --epochs 3 --experts 1 --inner-steps 2 --eval-steps 2", 3),
        ("reweight.py --steps 5 --classes 3 --examples 20 --batch 10", 2),
    ],
)
def test_programs(program, rows, way):
    name, *options = program.split()
    process = forks.run(str(ROOT / "examples" / name), *options, "--way", way)
    assert process.returncode == 0, process.stderr
    assert f"by {way}" in process.stdout and len(re.findall(r"^\w+.* [\d.]+ %", process.stdout, re.M)) >= rows
