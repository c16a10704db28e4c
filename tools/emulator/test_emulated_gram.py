"""mlp_meta_loss of a wide linear head: a few tasks on a large card get several blocks each."""

import pytest
import torch

import fastmeta
from emulator import emulation
from harness import mlp_calls
from harness.compare import check_against_reference, values_and_grads
from harness.mlp_cases import problem

CASES = {  # rates, first order, what of the problem is another way
    "scalar": ("scalar", False, {}),
    "own parameters": ("per tensor", False, {"shared": False, "weights": True}),
    "per step": ("per step", False, {"bias": False}),
    "first order": ("per tensor and step", True, {"shared": False}),
}


@pytest.fixture
def card():
    found = emulation.module()
    found.set_device(132, 227 * 1024)
    yield found
    emulation.reset(found)


def head(loss, case, dtype=torch.float64, widths=(1030, 3)):
    """A function of the parameters and rates, and these; the examples stay as they are."""
    kind, first_order, options = CASES[case]
    p = problem(widths, 5, loss=loss, dtype=dtype, **options)
    fn, tensors = mlp_calls.meta_loss(p, kind, 2, first_order)
    n = len(p.flat) + len(p.rates(kind, 2))
    return lambda *t: fn(*t, *[x.to(t[0].dtype) for x in tensors[n:]]), tensors[:n]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_values_and_derivatives(card, loss, case):
    fn, tensors = head(loss, case)
    check_against_reference(fn, tensors, "emulated")
    leaves = [t.requires_grad_() for t in tensors]
    assert emulation.launches(lambda: torch.autograd.grad(fn(*leaves).sum(), leaves)) == 4  # the last over the tasks


def test_float32_and_devices(card):
    """As exact as the reference; the same bits on any device and in any order of threads."""
    fn, tensors = head("cross_entropy", "scalar", torch.float32)
    check_against_reference(fn, lambda: head("cross_entropy", "scalar", torch.float32)[1], "emulated")
    found = []
    for multiprocessors, order in ((132, "forward"), (40, "random")):
        card.set_device(multiprocessors, 227 * 1024)
        card.set_order(order, 0)
        with fastmeta.backend("emulated"):
            found.append(values_and_grads(fn, tensors))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_who_goes_another_way(card):
    """Narrow heads, hidden layers, gradients to examples, more tasks than the card has room for."""
    options = {"steps": 2, "loss": "mse"}

    def launches(widths, T=3, examples=False):
        p = problem(widths, 5, T=T, loss="mse", dtype=torch.float32)
        x = p.x.requires_grad_(examples)
        return emulation.launches(lambda: fastmeta.mlp_meta_loss(p.params, 0.1, x, p.y, p.x, p.y, **options))

    card.set_runs(False)
    assert (launches((1024, 3)), launches((1023, 3)), launches((1024, 3, 3)), launches((1024, 3), 200)) == (2, 1, 1, 1)
    assert launches((1024, 3), examples=True) == 1
    card.set_runs(True)
