from functools import partial

import fastmeta
from measure import flops
from measure.contenders import CONV4, by_reference, conv4, on_backends

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
