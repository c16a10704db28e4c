import pytest
import torch

import fastmeta
from measure.contenders import backward, compiled, on_backends, rotation

CONV4 = [s for i in (1, 64, 64, 64) for s in ((64, i, 3, 3), (64,), (64,), (64,))] + [(5, 64), (5,)]
TASKS = 32


@pytest.mark.parametrize("rates", ["scalar", "per-parameter"])
def bench_sgd_step(race, rates):
    """Forward and backward of a step from a Conv4's parameters, shared, by the gradients of all tasks."""
    params = [torch.randn(s, requires_grad=True) for s in CONV4]
    grads = [torch.randn(TASKS, *s, requires_grad=True) for s in CONV4]
    shapes = [()] if rates == "scalar" else CONV4
    lr = [torch.rand(s, requires_grad=True) for s in shapes]

    def ours(params, grads, lr):
        return fastmeta.sgd_step(params, grads, lr[0] if rates == "scalar" else lr)

    def run(step):
        copies = rotation((params, grads, lr))

        def forward_and_backward():
            params, grads, lr = next(copies)
            return backward(step(params, grads, lr), [*params, *grads, *lr])

        return forward_and_backward

    race(
        f"sgd_step fwd+bwd Conv4-64 x {TASKS} tasks, {rates} rate",
        on_backends(run(ours)) | {"eager": run(eager), "foreach": run(foreach)},
        compiled={
            "compiled": run(compiled(eager)),
            "compiled cpp-wrapper": run(compiled(eager, {"cpp_wrapper": True})),
        },
        floor=(5 * sum(g.nbytes for g in grads), 0),  # forward: grads, new; backward: cotangents, grads, dgrads
        mode="forward + backward",
    )


def eager(params, grads, lr):
    return [p - rate * g for p, g, rate in zip(params, grads, of_each(lr, params), strict=True)]


def foreach(params, grads, lr):
    shared = [p.expand_as(g) for p, g in zip(params, grads, strict=True)]
    rates = [rate.expand_as(g) for rate, g in zip(of_each(lr, params), grads, strict=True)]
    return torch._foreach_sub(shared, torch._foreach_mul(grads, rates))


def of_each(lr, params):
    return lr * len(params) if len(lr) == 1 else lr
