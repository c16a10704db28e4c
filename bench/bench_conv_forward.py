import copy
from functools import partial

import pytest
import torch
from bench_learners import body

import fastmeta
from measure import flops
from measure.contenders import CONV4, backward, by_reference, compiled, conv4, on_backends

WIDTH, TASKS, IMAGES = 32, 8, 25


def bench_conv_forward(race):
    params, x, _ = conv4(WIDTH, TASKS, IMAGES)
    params = [p.detach() for p in params]
    eager, made = by_reference("conv_forward", (tuple(map(tuple, CONV4)),), params, x)
    race(
        f"conv_forward Conv4-{WIDTH}, {TASKS} tasks, {IMAGES} images 28x28",
        on_backends(lambda: fastmeta.conv_forward(params, x, blocks=CONV4))
        | {k: partial(f, params, x) for k, f in eager.items()},
        compiled={name: partial(fn, params, x) for name, fn in made.items()},
        floor=(0, TASKS * flops.conv4(WIDTH, 1, 28, 5, IMAGES)[0]),
    )


class Pass:
    """encode() and its gradients. The features are checked: where a rounding changes a window's winner, gradients move by up to 1e-2 of
    their norm, PyTorch's too (tests/inner/test_conv_forward.py checks ours in float64)."""

    def __init__(self, encode, params):
        self.encode, self.params = encode, params

    def __call__(self):
        out = self.encode()
        return out.detach(), *backward([out], self.params)

    def results(self):
        return self()[0]


@pytest.mark.parametrize(("images", "channels", "side"), [(320, 1, 28), (80, 3, 84)], ids=str)
def bench_encoder(race, images, channels, side, width=64):
    """Conv4 without its linear layer on one batch: features, and the gradients to all parameters."""
    module = body(True, width, channels)
    x, params = torch.randn(images, channels, side, side), list(module.parameters())
    placed = copy.deepcopy(module).to(memory_format=torch.channels_last)
    of_placed, x_placed = list(placed.parameters()), x.to(memory_format=torch.channels_last)
    listed = [p for i in range(0, len(params), 3) for p in (params[i], None, *params[i + 1 : i + 3])] + [None, None]

    made, (products, without_images) = compiled(module), flops.conv4(width, channels, side, 5, images)
    race(
        f"encoder Conv4-{width} forward + backward, {images} images {side}x{side}x{channels}",
        on_backends(Pass(lambda: fastmeta.conv_forward(listed, x, blocks=CONV4), params), reference=False)
        | {"eager": Pass(lambda: module(x), params), "channels_last": Pass(lambda: placed(x_placed), of_placed)},
        compiled={"compiled": Pass(lambda: made(x), params)},
        truth=Pass(lambda: module(x), params).results,
        floor=(0, 2 * products + without_images),
        mode="forward + backward",
    )
