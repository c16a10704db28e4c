"""Networks that the conv ops run, as models, and their episodes."""

import torch
from torch import nn
from torch.func import functional_call

D = torch.float64


def network(blocks=2, channels=5, size=9, inputs=1, ways=4, *, norm=True, affine=True, relu=True, pool=True, stride=1,
            padding=1, bias=True):  # fmt: skip
    modules = []
    for _ in range(blocks):
        modules.append(nn.Conv2d(inputs, channels, 3, stride, padding, bias=bias))
        size = (size + 2 * padding - 3) // stride + 1
        if norm is True:
            modules.append(nn.BatchNorm2d(channels, affine=affine, track_running_stats=False))
        elif norm:
            modules.append(nn.GroupNorm(norm if channels % norm == 0 else 1, channels, affine=affine))
        if relu:
            modules.append(nn.ReLU())
        if pool:
            modules.append(nn.MaxPool2d(2))
            size //= 2
        inputs = channels
    model = nn.Sequential(*modules, nn.Flatten(), nn.Linear(channels * size * size, ways, bias=bias)).to(D)
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, 1.0, 0.3)
    return model


def episode(model, size=9, tasks=3, shots=4, queries=6, dtype=D, loss="cross_entropy"):
    inputs, ways = model[0].in_channels, model[-1].out_features
    data = []
    for n in (shots, queries):
        data.append(torch.randn(tasks, n, inputs, size, size, dtype=dtype))
        labels = torch.randint(0, ways, (tasks, n))
        data.append(labels if loss == "cross_entropy" else torch.randn(tasks, n, ways, dtype=dtype))
    return data


class Losses(nn.Module):
    """A learner's losses as a function of its parameters."""

    def __init__(self, learner, data):
        super().__init__()
        self.learner, self.data, self.names = learner, data, [name for name, _ in learner.named_parameters()]

    def forward(self):
        return self.learner.loss(
            *(x.to(next(self.learner.parameters()).dtype) if x.is_floating_point() else x for x in self.data)
        )

    def at(self, *values):
        return functional_call(self, {f"learner.{n}": v for n, v in zip(self.names, values, strict=True)}, ())
