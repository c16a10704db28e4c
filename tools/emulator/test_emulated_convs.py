"""The CUDA kernels of the conv ops against the reference, under the checker."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastmeta
from emulator import emulation
from emulator.emulation import launches
from fastmeta import ConvBlock
from harness.compare import check_against_reference, outputs, values_and_grads
from harness.conv_cases import KINDS, problem, problems
from harness.device import tf32_allowed
from harness.mlp_calls import adapt, every, forward, grad, hvp, loss, meta_loss
from harness.mlp_cases import RATES

SMALL = (
    ConvBlock(),
    ConvBlock(norm=1, pool=1, stride=2, padding=0, relu=False),
)  # for 7 x 7: windows that the edge cuts off
ORDERS = {
    "Conv4": {"n": 3},
    "64 channels": {"n": 2, "channels": 40, "size": 4},
    "norms in chunks": {"n": 33, "channels": 2, "size": 4},
    "group norm": {"blocks": "group norm", "n": 3},
    "strides": {"blocks": "strides", "n": 3},
}
CALLS = {
    "forward": (forward,),
    "loss": (loss,),
    "grad": (grad,),
    "hvp": (hvp,),
    "ggn": (hvp, st.just("ggn")),
    "adapt": (adapt, st.sampled_from(RATES), st.integers(0, 3), st.booleans()),
    "meta_loss": (meta_loss, st.sampled_from(RATES), st.integers(0, 3), st.booleans()),
}


def conv4(blocks=4, channels=4):
    layers = []
    for i in range(blocks):
        norm = nn.BatchNorm2d(channels, track_running_stats=False)
        layers += [nn.Conv2d(channels if i else 1, channels, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 5))


@pytest.fixture
def emulator():
    found = emulation.module()
    yield found
    found.set_runs(True)
    emulation.reset(found)


def test_a_small_network():
    """The backward of `grad` is a Hessian-vector product."""
    p = problem(SMALL, n=2, channels=2, inputs=1, size=7, T=1, loss="mse", weights=True)
    for call in (grad(p), meta_loss(p, "per tensor", 1)):
        check_against_reference(*call, "emulated", cancelling=True)


def test_a_rate_that_is_a_number():
    """Which a link of the chain leaves to the next in the direction of its product."""
    p = problem(SMALL[:1], n=2, channels=2, inputs=1, size=4, T=1, loss="mse")
    fn, tensors = meta_loss(p, "scalar", 2)
    rate = len(p.flat)
    tensors.pop(rate)
    check_against_reference(lambda *t: fn(*t[:rate], 0.1, *t[rate:]), tensors, "emulated", cancelling=True)


@pytest.mark.parametrize("steps", [1, 5])
def test_launches_of_a_meta_iteration(emulator, steps):
    """Forward 2 for each block; the linear layer with the loss and the gradient to the features 1; back 2 for each block but 1 for the
    first; the gradients 2. A link of the chain is as much: alpha v is left by the gradients before."""
    emulator.set_runs(False)
    x, y = torch.randn(2, 5, 1, 28, 28), torch.randint(5, (2, 5))
    of_pass = of_link = 2 * 4 + 1 + (2 * 4 - 1) + 2
    for learner, more in ((fastmeta.MAML, 0), (fastmeta.MetaSGD, 2 * steps)):  # to rates: gradients once more
        model = learner(conv4(), lr=0.1, steps=steps)
        found = launches(lambda model=model: model.loss(x, y, x, y).mean().backward())
        assert found == (steps + 1) * of_pass + steps * of_link + 1 + more
    assert of_pass == 18


def any_net(name):
    call, *strategies = CALLS[name]

    @settings(max_examples=8)
    @given(st.data())
    def test(data):
        p = data.draw(problems(any_side=False))
        check_against_reference(*call(p, *map(data.draw, strategies)), "emulated", cancelling=True)

    return test


@pytest.mark.gate
@pytest.mark.parametrize("name", CALLS)
def test_any_net(name):
    any_net(name)()


@pytest.mark.gate
@pytest.mark.parametrize("kind", [*ORDERS])
def test_orders_change_no_bit(emulator, kind):
    made = every(problem(**ORDERS[kind], T=2, inputs=1, dtype=torch.float32), "scalar", False)
    found = []
    for multiprocessors, order in ((132, "forward"), (1, "random")):
        emulator.set_device(multiprocessors, 227 * 1024)
        emulator.set_order(order, 3)
        with fastmeta.backend("emulated"):
            found.append([values_and_grads(fn, tensors) for fn, tensors in made])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.gate
@pytest.mark.parametrize("call", [forward, hvp, functools.partial(meta_loss, kind="scalar", steps=2)])
def test_float32(call):
    """Over several draws, which share out what one has of luck."""

    def drawn():
        return call(problem(n=4, channels=17, inputs=3, size=8, T=1, dtype=torch.float32))

    with tf32_allowed(False):
        check_against_reference(drawn()[0], lambda: drawn()[1], "emulated")


@pytest.mark.gate
@pytest.mark.parametrize("allow_tf32", [False, True], indirect=True)
def test_integers_are_exact(allow_tf32):
    """Of 11 bits: each product of the right channel, tap and pixel. Tiles of 32 and of 64 channels that are full, and not."""
    for channels, inputs, size, stride, padding in ((66, 8, 9, 1, 1), (3, 65, 5, 2, 2), (100, 40, 5, 1, 1)):
        blocks = (ConvBlock(norm=None, relu=False, pool=1, stride=stride, padding=padding),)
        p = problem(blocks, n=2, channels=channels, inputs=inputs, size=size, T=2, loss="mse", dtype=torch.float32)
        fn, tensors = forward(p)
        tensors = [torch.randint_like(t, -2, 3) for t in tensors]
        tensors[2] = torch.zeros_like(tensors[2])
        places = torch.randint(tensors[2].shape[1], (3,))
        tensors[2][range(3), places] = 1.0  # outputs: numbers of the convolution
        truth = values_and_grads(fn, [t.double() for t in tensors])
        with fastmeta.backend("emulated"):
            found = values_and_grads(fn, tensors)
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=0)


@pytest.mark.gate
def test_tf32_rounds_what_it_may(allow_tf32):
    """Every op: off by about 2^-11, and without by far less."""
    p = problem("no norm", n=4, channels=17, inputs=3, T=2, loss="mse", dtype=torch.float32)
    for fn, tensors in every(p, "scalar", False):
        truth = outputs(fn(*(t.double() for t in tensors)))
        errors = []
        for allowed in (True, False):
            with fastmeta.backend("emulated"), tf32_allowed(allowed):
                found = outputs(fn(*tensors))
            errors.append([(a - b).norm() / b.norm() for a, b in zip(found, truth, strict=True)])
        assert all(off < 2**-17 and off < on < 2**-6 for on, off in zip(*errors, strict=True)), errors


@pytest.mark.gate
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("beyond the kernels", "means of pixels")])
def test_what_is_no_number_goes_as_through_the_reference(kind, value):
    """A task for each place where it can lie; of values and first derivatives NaN in the same places. But an infinite kernel, which meets
    zeros around gradients too."""
    p = problem(kind, n=4, T=5, inputs=1, shared=False)
    places = [p.flat[0] if value != value else p.x, p.flat[1], *p.flat[-2:], p.x]
    for i, t in enumerate(places):
        t[i].view(-1)[0] = value
    fn, tensors = loss(p)
    with fastmeta.backend("reference"):
        truth = values_and_grads(fn, tensors)
    with fastmeta.backend("emulated"):
        found = values_and_grads(fn, tensors)
    for index, (a, b) in enumerate(zip(found, truth, strict=True)):
        torch.testing.assert_close(a, b, equal_nan=True, msg=lambda m, index=index: f"{index}: {m}")


@pytest.mark.gate
def test_more_than_a_block_takes():
    """Gradients to kernels in three parts, of which one ends within an image; channels of five tiles of 32, and two of 64; windows that the
    edge cuts off."""
    for options in (
        {"channels": 2, "n": 5, "size": 29},
        {"channels": 130, "n": 2, "size": 7},
        {"channels": 100, "n": 2, "size": 5},
    ):
        check_against_reference(*grad(problem(**options, inputs=1, T=2)), "emulated", cancelling=True)


@pytest.mark.gate
@pytest.mark.parametrize(("height", "width"), [(5, 6), (6, 5), (5, 5)])
def test_windows_of_rectangles(height, width):
    """Columns in their order: rows and columns of pixels that are in none come last. Gammas 0, where the first wins, and below."""
    p = problem((ConvBlock(),), n=3, channels=2, inputs=1, size=4, T=2)
    p.params[2] = torch.tensor([0.0, -1.2], dtype=p.x.dtype)
    p.x = torch.randn(2, 3, 1, height, width, dtype=p.x.dtype)
    p.params[-2] = torch.randn(3, 2 * (height // 2) * (width // 2), dtype=p.x.dtype)
    check_against_reference(*grad(p), "emulated", cancelling=True)


@pytest.mark.gate
@pytest.mark.parametrize("norm", ["batch", None])
def test_norms_whose_images_several_blocks_take(norm):
    """Of 35 images: two blocks a channel, one with an image more; tiles with several images, and the last with few numbers."""
    blocks = (ConvBlock(norm=norm), ConvBlock(norm=norm, pool=1), ConvBlock(norm=norm))
    p = problem(blocks, n=35, channels=2, inputs=1, size=9, T=2, weights=True)
    for call in (grad(p), meta_loss(p, "per tensor", 1)):
        check_against_reference(*call, "emulated", cancelling=True)


@pytest.mark.gate
def test_more_than_a_launch_takes():
    """16 blocks: four launches of kernels' gradients, several of sums and scalings."""
    p = problem((ConvBlock(pool=1),) * 16, n=2, channels=2, inputs=1, size=3, T=1)
    check_against_reference(*meta_loss(p, "per element", 1), "emulated", cancelling=True)
