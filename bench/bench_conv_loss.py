from functools import partial

import fastmeta
from measure import flops
from measure.contenders import CONV4, backward, by_reference, conv4, on_backends

WIDTH, TASKS, IMAGES = 32, 8, 25


def bench_conv_loss(race):
    params, x, y = conv4(WIDTH, TASKS, IMAGES)
    eager, made = by_reference("conv_loss", (tuple(map(tuple, CONV4)), "cross_entropy"), params, x, y)

    def run(way):
        return lambda: backward([way(params, x, y)], params)

    race(
        f"conv_loss fwd+bwd Conv4-{WIDTH}, {TASKS} tasks, {IMAGES} images 28x28",
        on_backends(run(partial(fastmeta.conv_loss, blocks=CONV4))) | {name: run(way) for name, way in eager.items()},
        compiled={name: run(way) for name, way in made.items()},
        floor=(0, TASKS * flops.gradients(*flops.conv4(WIDTH, 1, 28, 5, IMAGES))),
        mode="forward + backward",
    )
