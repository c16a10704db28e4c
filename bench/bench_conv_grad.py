from functools import partial

import fastmeta
from measure import flops
from measure.contenders import CONV4, by_reference, conv4, on_backends

WIDTH, TASKS, IMAGES = 32, 8, 25


def bench_conv_grad(race):
    """Each task's own gradient, nothing summed."""
    params, x, y = conv4(WIDTH, TASKS, IMAGES)
    arguments = [p.detach() for p in params], x, y
    eager, made = by_reference("conv_grad", (tuple(map(tuple, CONV4)), "cross_entropy"), *arguments)
    race(
        f"conv_grad Conv4-{WIDTH}, {TASKS} tasks, {IMAGES} images 28x28",
        on_backends(partial(fastmeta.conv_grad, *arguments, blocks=CONV4))
        | {k: partial(f, *arguments) for k, f in eager.items()},
        compiled={name: partial(fn, *arguments) for name, fn in made.items()},
        floor=(0, TASKS * flops.gradients(*flops.conv4(WIDTH, 1, 28, 5, IMAGES))),
    )
