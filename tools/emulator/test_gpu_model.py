"""The model of the GPU's time: it takes the ways that the launchers take, and its table is on the page."""

import pytest
import torch

import fastmeta
from emulator import emulation
from measure import gpu_conv_model
from measure.gpu_conv_model import Conv
from measure.gpu_model import CARDS, Mlp, launches, plan
from pages import gpu_predictions
from pages.gpu_predictions import BEGIN, END, PAGE, WORKLOADS

NEAR = {  # where a little more or less goes another way
    "few tasks": Mlp((200, 200, 1), 33, 26),
    "a task more": Mlp((200, 200, 1), 34, 26),
    "less than a large pass": Mlp((784, 64, 64, 10), 8, 18),
    "a large pass": Mlp((784, 64, 64, 10), 8, 19),
    "what a block holds": Mlp((3600, 5), 67, 10, 10, 1),
    "more than a block holds": Mlp((4000, 5), 67, 30, 10, 1),
    "as many blocks as pay": Mlp((1600, 5), 33, 25, 75, 5),
    "too few": Mlp((1600, 5), 44, 25, 75, 5),
}


@pytest.fixture
def emulator():
    found = emulation.module()
    found.set_runs(False)
    yield found
    found.set_runs(True)
    emulation.reset(found)


def call(p):
    shapes = [s for i, o in zip(p.widths, p.widths[1:], strict=False) for s in ((o, i), (o,))]
    params = [torch.zeros(s, requires_grad=p.steps > 0) for s in shapes]
    (x, y), (query_x, query_y) = (
        [torch.zeros(p.T, n, p.widths[0]), torch.zeros(p.T, n, p.widths[-1])] for n in (p.S, p.Q)
    )
    if not p.steps:
        return fastmeta.mlp_hvp(params, params, x, y, loss="mse")
    losses = fastmeta.mlp_meta_loss(params, 0.1, x, y, query_x, query_y, steps=p.steps, loss="mse")
    return torch.autograd.grad(losses.sum(), params)


@pytest.mark.parametrize("name", ["A100", "H200"])
def test_the_ways_of_the_model_are_those_of_the_launchers(emulator, name):
    card, found = CARDS[name], {}
    emulator.set_device(card.multiprocessors, card.shared)
    problems = {key: p for key, p in (WORKLOADS | NEAR).items() if isinstance(p, Mlp) and p.T < 1000}
    for key, p in problems.items():
        found[key] = emulation.launches(lambda p=p: call(p))
    assert found == {key: launches(card, p) for key, p in problems.items()}
    if name == "H200":
        found = [plan(card, p).way.removeprefix("by ") for p in NEAR.values()]
        assert found == ["layer", "task", "task", "layer", "task", "layer", "gram", "task"]


def test_the_launches_of_convolutional_networks(emulator):
    emulator.set_device(132, CARDS["H200"].shared)
    for p in (Conv(2, 1, 16, 3, 2, 2, 3, 2), Conv(2, 3, 4, 3, 1, 2, 3, 1, blocks=2)):
        params = []
        for into in p.ins():
            params += [torch.zeros(p.channels, into, 3, 3), *[torch.zeros(p.channels) for _ in range(3)]]
        params += [torch.zeros(p.ways, p.widths[0]), torch.zeros(p.ways)]
        params = [t.requires_grad_() for t in params]
        x, q = (torch.zeros(p.T, n, p.inputs, p.size, p.size) for n in (p.S, p.Q))
        y, query_y = (torch.zeros(p.T, n, p.ways) for n in (p.S, p.Q))

        def call(params=params, data=(x, y, q, query_y), p=p):
            blocks = [fastmeta.ConvBlock()] * p.blocks
            losses = fastmeta.conv_meta_loss(params, 0.1, *data, blocks=blocks, steps=p.steps, loss="mse")
            return torch.autograd.grad(losses.sum(), params)

        assert emulation.launches(call) == gpu_conv_model.launches(CARDS["H200"], p)


def test_the_table_is_what_the_model_says():
    shown = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert shown.strip().splitlines() == "\n".join(gpu_predictions.lines()).strip().splitlines()
