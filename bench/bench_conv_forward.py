import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from bench_learners import body

import fastmeta
from measure import flops, jax_ways
from measure.contenders import CONV4, backward, by_reference, compiled, conv4, on_backends
from measure.resnet12 import BLOCK, resnet12

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
    module, x = body(True, width, channels), torch.randn(images, channels, side, side)
    params = list(module.parameters())
    of_encoder(
        race, f"Conv4-{width}", module, CONV4, x,
        eager={"oneDNN's layouts": Pass(lambda: module(x.to_mkldnn()).to_dense(), params)},
        made=jax_ways.of_encoder(partial(jax_ways.conv4, jax_ways.by_lax), params, x),
    )  # fmt: skip


def bench_resnet12(race, images=80, side=32):
    """The same of ResNet-12."""
    module, x = resnet12(), torch.randn(images, 3, side, side)
    of_encoder(
        race, "ResNet-12", module, BLOCK * 4, x, made=jax_ways.of_encoder(jax_ways.resnet12, [*module.parameters()], x),
        plan=SimpleNamespace(budget=3, rounds=5),
    )  # fmt: skip


def of_encoder(race, name, module, blocks, x, eager=None, made=None, plan=None):
    """`module` as it is, in channels_last and compiled, beside the op."""
    images, channels, side, _ = x.shape
    params, placed = list(module.parameters()), copy.deepcopy(module).to(memory_format=torch.channels_last)
    of_placed, x_placed, compiles = list(placed.parameters()), x.to(memory_format=torch.channels_last), compiled(module)
    listed = [p for i in range(0, len(params), 3) for p in (params[i], None, *params[i + 1 : i + 3])] + [None, None]
    race(
        f"encoder {name} forward + backward, {images} images {side}x{side}x{channels}",
        on_backends(Pass(lambda: fastmeta.conv_forward(listed, x, blocks=blocks), params), reference=False)
        | {"eager": Pass(lambda: module(x), params), "channels_last": Pass(lambda: placed(x_placed), of_placed)}
        | (eager or {}),
        compiled={"compiled": Pass(lambda: compiles(x), params)} | (made or {}),
        truth=Pass(lambda: module(x), params).results,
        floor=(0, flops.encoder(module, x)),
        mode="forward + backward",
        **({"plan": plan} if plan else {}),
    )  # fmt: skip
