"""A meta-iteration of the op alone; bench_learners.py races it against other libraries, in MAML."""

import pytest

import fastmeta
from measure import flops
from measure.contenders import CONV4, backward, conv4, on_backends

WIDTH, TASKS, SHOTS, QUERIES, RATE = 32, 8, 5, 75, 0.1


@pytest.mark.parametrize("steps", [1, 5])
def bench_conv_meta_loss(race, steps):
    params, x, y = conv4(WIDTH, TASKS, SHOTS)
    _, query_x, query_y = conv4(WIDTH, TASKS, QUERIES)

    def run():
        losses = fastmeta.conv_meta_loss(params, RATE, x, y, query_x, query_y, blocks=CONV4, steps=steps)
        return backward([losses], params)

    of_support, of_query = (flops.conv4(WIDTH, 1, 28, 5, n) for n in (SHOTS, QUERIES))
    race(
        f"conv_meta_loss Conv4-{WIDTH} K{steps}, {TASKS} tasks, {SHOTS} + {QUERIES} images 28x28",
        on_backends(run),
        floor=(0, TASKS * flops.of_steps(of_support, of_query, steps)),
        mode="meta-iteration",
    )
