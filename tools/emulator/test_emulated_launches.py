"""How the CUDA launchers go about a call: by task or layer by layer, in how many launches, and with what of the runtime."""

import re

import pytest
import torch
from torch import nn

import fastmeta
from emulator import emulation
from emulator.emulation import launches
from harness import mlp_calls
from harness.compare import check_against_reference
from harness.mlp_cases import problem
from harness.places import ROOT

CSRC = ROOT / "csrc"


def maml(steps):
    return fastmeta.MAML(network(), lr=0.01, steps=steps, loss="mse")


def meta_sgd(steps):
    return fastmeta.MetaSGD(network(), lr=0.01, steps=steps, loss="mse")


def anil(steps):
    body = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
    return fastmeta.ANIL(body, nn.Linear(40, 1), lr=0.01, steps=steps, loss="mse")


def network():
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def meta_iteration(learner, T=25):
    x, y = torch.randn(T, 10, 1), torch.randn(T, 10, 1)
    return lambda: learner.loss(x, y, x, y).mean().backward()


def adapt_and_loss(steps, T=25):
    params = [p for layer in network() if isinstance(layer, nn.Linear) for p in (layer.weight, layer.bias)]
    x, y = torch.randn(T, 10, 1), torch.randn(T, 10, 1)

    def call():
        adapted = fastmeta.mlp_adapt(params, 0.01, x, y, steps=steps, loss="mse")
        fastmeta.mlp_loss(adapted, x, y, loss="mse").mean().backward()

    return call


@pytest.mark.parametrize("steps", [1, 5])
def test_launches_of_a_meta_iteration_by_task(steps):
    """An MLP 1-40-40-1, 25 tasks of 10 + 10 examples: forward, and the gradients over the tasks in backward."""
    assert launches(meta_iteration(maml(steps))) == 2
    assert launches(meta_iteration(meta_sgd(steps))) == 2
    assert launches(meta_iteration(anil(steps))) == 2
    assert launches(adapt_and_loss(steps)) == 5


@pytest.mark.parametrize("steps", [1, 2])
def test_launches_of_a_meta_iteration_by_layer(steps):
    """A step forward: L products, the loss, L - 1 products back, the gradients. A step back: alpha v, all products twice."""
    L = 3
    forward, back = 2 * L + 1, 4 * L + 1
    both, over_tasks = steps * (forward + back), 1
    assert launches(meta_iteration(maml(steps), T=2), "emulated-layers") == both + forward + over_tasks
    assert launches(meta_iteration(meta_sgd(steps), T=2), "emulated-layers") == both + forward + steps + over_tasks
    head = steps * (3 + 5) + 3 + steps + 1 + over_tasks  # and the gradients to its features
    assert launches(meta_iteration(anil(steps), T=2), "emulated-layers") == head
    copied = 1  # the parameters before the first step
    assert launches(adapt_and_loss(steps, T=2), "emulated-layers") == both + copied + forward + 2 * over_tasks


@pytest.fixture
def large_card():
    found = emulation.module()
    found.set_device(132, 227 * 1024)
    yield
    emulation.reset(found)


def test_few_tasks_with_large_matrices_go_by_layer(large_card):
    for T, width, by_layer in ((1, 200, True), (34, 200, False), (1, 100, False)):
        p = problem((width, width, 1), 26, T=T, loss="mse", dtype=torch.float32)
        assert launches(lambda p=p: fastmeta.mlp_loss(p.params, p.x, p.y, **p.options())) == (3 if by_layer else 1), T


def test_sizes_about_a_tile():
    """Tiles that are full, that hold one row or column, and rows that do and do not begin at 16 bytes."""
    p = problem((68, 65, 64, 3), 65, T=1)
    for fn, tensors in (mlp_calls.hvp(p), mlp_calls.adapt(p, "per tensor", 2), mlp_calls.meta_loss(p, "scalar", 1)):
        check_against_reference(fn, tensors, "emulated-layers")


def test_sizes_about_a_tile_in_float32():
    p = problem((68, 65, 64, 3), 65, T=1, dtype=torch.float32)
    for fn, tensors in (mlp_calls.forward(p), mlp_calls.hvp(p), mlp_calls.adapt(p, "per element", 1)):
        check_against_reference(fn, tensors, "emulated-layers")


def test_a_kernel_asks_for_more_shared_memory_once_on_each_device(large_card):
    """Whatever its tasks take, and on whichever device it was asked before."""
    emulator = emulation.module()

    def asked(n):
        before = emulator.opt_ins()
        p = problem((40, 8), n, T=1, loss="mse")
        with fastmeta.backend("emulated"):
            fastmeta.mlp_loss(p.params, p.x, p.y, **p.options())
        return emulator.opt_ins() - before

    found = []
    for kilobytes in (200, 201, 200):  # devices that no other test has
        emulator.set_device(1, kilobytes * 1024)
        found.append([asked(n) for n in (10, 200, 120, 400)])  # inputs of 3, 64, 38 and 128 KB
    assert found == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_a_launch_can_be_captured_into_a_graph():
    """The launchers call nothing of CUDA but what launches and what tells of the device; the emulator sees that every launch
    goes to the caller's stream."""
    sources = [path.read_text() for path in CSRC.glob("*/cuda/*.*")]
    called = {name for text in sources for name in re.findall(r"\b(?:cuda|cu)[A-Z]\w*(?=\()", text)}
    words = "LaunchKernelEx FuncSetAttribute DeviceGetAttribute GetDevice SetDevice GetLastError GetErrorString"
    assert called == {f"cuda{word}" for word in words.split()}
    assert not any(re.search(r"<<<|\bnew\b|\bmalloc\b|std::vector", text) for text in sources)
