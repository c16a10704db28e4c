"""examples/distill.py and reweight.py: fastmeta.unroll gives the gradients of the plain loops beside it, in float64, and both run."""

import re

import distill
import pytest
import reweight
import torch
from letters import Letters, network

from harness import forks
from harness.places import ROOT

D = torch.float64


def weights(seed):
    torch.manual_seed(seed)
    return {name: p.detach() for name, p in network(3, width=8).to(D).named_parameters()}


def letters(n):
    return Letters(torch.rand(n, 1, 28, 28, dtype=D), torch.arange(n) % 3)


def same(values, inputs):
    found = [torch.autograd.grad(value, inputs) for value in values]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_distilled_images_and_rate():
    net, (images, labels) = network(3, width=8).to(D), letters(6)
    rate = torch.tensor(0.1, dtype=D, requires_grad=True)
    values = [
        way(net, weights(0), weights(1), images.requires_grad_(), labels, rate, 4) for way in distill.WAYS.values()
    ]
    same(values, [images, rate])


def test_weights_of_examples():
    net, start = network(3, width=8).to(D), torch.zeros(5, dtype=D, requires_grad=True)
    batch, clean = letters(5), letters(3)
    same([way(net, start, batch, clean, 0.1, 3) for way in reweight.WAYS.values()], [start])


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
