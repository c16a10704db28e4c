"""Small networks, episodes for them, and the comparison with the plain loop."""

import torch
import torch.nn.functional as F
from torch import nn

from harness.plain_loops import D, plain_losses, same_gradients

T = 3


WEIGHTS = torch.tensor([1.0, -0.5, 2.0], dtype=D)


def mlp():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)).to(D)


def episode(images=False, tasks=T):
    def draw(n):
        return (
            torch.randn(tasks, n, *((1, 3, 3) if images else (6,)), dtype=D),
            torch.arange(3).repeat(2)[:n].expand(tasks, n),
        )

    return (*draw(5), *draw(6))


def same_as_the_plain_loop(learner, data):
    inputs = [p for p in learner.parameters() if p.requires_grad]
    same_gradients(learner.loss(*data), plain_losses(learner, *data), inputs, WEIGHTS)
    outputs = learner(*data[:3])
    of_outputs = torch.stack([F.cross_entropy(o, y) for o, y in zip(outputs, data[3], strict=True)])
    same_gradients(of_outputs, plain_losses(learner, *data), inputs, WEIGHTS)
