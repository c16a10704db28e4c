"""Small convolutional networks, episodes for them, and which native kernels their learners run."""

import pytest
import torch

from fastmeta.learners import proto_maml
from fastmeta.networks import convnet
from harness.conv_cases import module, problem
from harness.plain_loops import D

SMALL = {"n": 4, "channels": 5, "inputs": 1, "ways": 4}


def network(blocks="Conv4", **options):
    return module(problem(blocks, **SMALL | options), 0)


def episode(size=9, tasks=3, shots=4, queries=6):
    return [
        x for n in (shots, queries) for x in (torch.randn(tasks, n, 1, size, size, dtype=D), torch.randint(0, 4, (tasks, n)))
    ]  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    """The ops whose native kernels ran."""
    natively, ran = convnet.natively, []

    def counted(name, *args):
        found = natively(name, *args)
        ran.extend([name] if found is not None else [])
        return found

    for asker, name in ((convnet, "natively"), (proto_maml, "direct")):
        monkeypatch.setattr(asker, name, counted)
    return ran
