"""Convolutional networks and calls that the fused kernels do not take: they run in the general engine."""

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import ConvBlock
from harness.conv_learners import episode, network
from harness.engine import kernels_of


def change(place, layer):
    model = network()
    return nn.Sequential(*model[:place], layer, *model[place + 1 :])


def frozen():
    model = network()
    model[0].weight.requires_grad_(False)
    return model


def weight_normed():
    first = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 3, 3))
    return nn.Sequential(first, nn.Flatten(), nn.Linear(27, 4), nn.ReLU(), nn.Linear(4, 4))


OTHERS = {
    "a weight of two": weight_normed,
    "its hidden layer": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.Flatten(),
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(27, 4)),
        nn.ReLU(),
        nn.Linear(4, 4),
    ),
    "a norm and tanh": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(9, 6), nn.LayerNorm((6,)), nn.Tanh(), nn.Linear(6, 4)
    ),
    "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Linear(6, 4), nn.Softmax(1)),
    "5 x 3": lambda: change(0, nn.Conv2d(1, 5, (5, 3), padding=1)),
    "padding of 3": lambda: change(0, nn.Conv2d(1, 5, 5, padding=3)),
    "dilation": lambda: change(0, nn.Conv2d(1, 5, 3, padding=2, dilation=2)),
    "groups": lambda: change(4, nn.Conv2d(5, 5, 3, padding=1, groups=5)),
    "reflection": lambda: change(0, nn.Conv2d(1, 5, 3, padding=1, padding_mode="reflect")),
    "uneven stride": lambda: change(0, nn.Conv2d(1, 5, 3, (1, 2), padding=1)),
    "instance norm": lambda: change(1, nn.InstanceNorm2d(5)),
    "leaky": lambda: change(2, nn.LeakyReLU()),
    "pool of 3": lambda: change(3, nn.MaxPool2d(3)),
    "overlapping": lambda: change(3, nn.MaxPool2d(2, 1)),
    "ceiling": lambda: change(3, nn.MaxPool2d(2, ceil_mode=True)),
    "frozen": frozen,
    "another activation": lambda: nn.Sequential(network(), nn.Tanh(), nn.Linear(4, 3)),
    "log_softmax of examples": lambda: nn.Sequential(network(), nn.LogSoftmax(0)),
    "no convolution": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_not_taken(kind):
    assert kernels_of(fastmeta.MAML(network())) == "conv"
    assert kernels_of(fastmeta.MAML(OTHERS[kind]())) != "conv"


def test_calls_that_the_kernel_cannot_take_run_in_the_general_engine(calls):
    learner, data = fastmeta.MAML(network(), 0.1, 1), episode()
    expected = learner.loss(*data)
    assert len(calls) == 1
    with fastmeta.backend("reference"):
        torch.testing.assert_close(learner.loss(*data), expected)
    with torch.autocast("cpu", torch.bfloat16):
        single = fastmeta.MAML(network().float(), 0.1, 1)
        single.loss(*(x.float() if x.is_floating_point() else x for x in data))
    assert len(calls) == 1
    for beyond in ((ConvBlock(padding=3, pool=1),), (ConvBlock(pool=1),) * 17):
        fastmeta.MAML(network(beyond), 0.1, 1).loss(*data)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fastmeta.MAML(network((ConvBlock(padding=0, pool=1),), size=3), 0.1, 1).loss(*episode(3, shots=1))
    with pytest.raises(RuntimeError, match="size"):
        learner.loss(*episode(3))
