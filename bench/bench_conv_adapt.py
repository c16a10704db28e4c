import fastmeta
from measure import flops
from measure.contenders import CONV4, backward, conv4, on_backends

WIDTH, TASKS, SHOTS, QUERIES, STEPS, RATE = 32, 8, 5, 75, 5, 0.1


def bench_conv_adapt(race):
    """A meta-iteration in two ops, adaptation and query loss, beside the one op that does both."""
    params, x, y = conv4(WIDTH, TASKS, SHOTS)
    _, query_x, query_y = conv4(WIDTH, TASKS, QUERIES)

    def in_two_ops():
        adapted = fastmeta.conv_adapt(params, RATE, x, y, blocks=CONV4, steps=STEPS)
        return backward([fastmeta.conv_loss(adapted, query_x, query_y, blocks=CONV4)], params)

    def in_one_op():
        losses = fastmeta.conv_meta_loss(params, RATE, x, y, query_x, query_y, blocks=CONV4, steps=STEPS)
        return backward([losses], params)

    of_support, of_query = (flops.conv4(WIDTH, 1, 28, 5, n) for n in (SHOTS, QUERIES))
    race(
        f"conv_adapt + conv_loss Conv4-{WIDTH} K{STEPS}, {TASKS} tasks, {SHOTS} + {QUERIES} images 28x28",
        on_backends(in_two_ops),
        also={"conv_meta_loss": in_one_op},
        floor=(0, TASKS * flops.of_steps(of_support, of_query, STEPS)),
        mode="meta-iteration",
    )
