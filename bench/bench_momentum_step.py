import torch
from bench_sgd_step import CONV4, TASKS

import fastmeta
from measure.contenders import backward, compiled, on_backends, rotation


def bench_momentum_step(race):
    """Forward and backward of a step with momentum of a Conv4's parameters, each task's own."""
    race_of_step(race, "momentum_step", 1, lambda p, g, b: fastmeta.momentum_step(p, g, b, 0.1, momentum=0.9), eager)


def race_of_step(race, op, states, ours, theirs):
    lists = [[torch.rand(TASKS, *s, requires_grad=True) for s in CONV4] for _ in range(2 + states)]

    def run(step):
        copies = rotation(lists)

        def forward_and_backward():
            given = next(copies)
            found = [x for some in step(*given) for x in some]
            return backward(found, [x for some in given for x in some])

        return forward_and_backward

    moved = (2 + states) + (1 + states) + (2 + states) + (1 + states) + (2 + states)
    race(
        f"{op} fwd+bwd Conv4-64 x {TASKS} tasks",
        on_backends(run(ours)) | {"eager": run(theirs)},
        compiled={"compiled": run(compiled(theirs))},
        floor=(
            moved * sum(g.nbytes for g in lists[1]),
            0,
        ),  # forward: all in, all out; backward: all and cotangents in, gradients out
        mode="forward + backward",
    )


def eager(params, grads, velocities):
    new = [0.9 * b + g for b, g in zip(velocities, grads, strict=True)]
    return [p - 0.1 * b for p, b in zip(params, new, strict=True)], new
