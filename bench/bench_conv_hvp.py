from functools import partial

import pytest
import torch

import fastmeta
from measure.contenders import CONV4, conv4, on_backends

WIDTH, IMAGES = 32, 25


@pytest.mark.parametrize("tasks", [1, 8])
def bench_conv_hvp(race, tasks):
    """H v of each task at shared parameters."""
    params, x, y = conv4(WIDTH, tasks, IMAGES)
    params = [p.detach() for p in params]
    arguments = params, [torch.randn_like(p) for p in params], x, y

    def by_vjp():
        """Reverse over reverse through the loss of the reference, of all tasks at once."""
        own = [p.expand(tasks, *p.shape) for p in params]

        def total(*theta):
            with fastmeta.backend("reference"):
                return fastmeta.conv_loss(list(theta), x, y, blocks=CONV4).sum()

        pullback = torch.func.vjp(torch.func.grad(total, tuple(range(len(own)))), *own)[1]
        return pullback(tuple(v.expand(tasks, *v.shape) for v in arguments[1]))

    race(
        f"conv_hvp Conv4-{WIDTH}, {tasks} tasks, {IMAGES} images 28x28",
        on_backends(partial(fastmeta.conv_hvp, *arguments, blocks=CONV4)) | {"vjp(grad)": by_vjp},
    )
