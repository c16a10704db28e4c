import pytest
import torch
from common import backward, on_backends

import fastmeta

CONV4 = [s for i in (1, 64, 64, 64) for s in ((64, i, 3, 3), (64,), (64,), (64,))] + [(5, 64), (5,)]


@pytest.mark.parametrize("rates", ["scalar", "per parameter"])
def bench_sgd_step(race, rates):
    """A Conv4's parameters, shared, and the gradients of 32 tasks: forward and backward."""
    params = [torch.randn(s, requires_grad=True) for s in CONV4]
    grads = [torch.randn(32, *s, requires_grad=True) for s in CONV4]
    lr = (
        torch.tensor(0.1, requires_grad=True)
        if rates == "scalar"
        else [torch.rand(s, requires_grad=True) for s in CONV4]
    )
    leaves = [*params, *grads, *([lr] if rates == "scalar" else lr)]
    contenders = on_backends(lambda: backward(fastmeta.sgd_step(params, grads, lr), leaves))
    race(f"sgd_step fwd+bwd Conv4-64 x 32 tasks, {rates} rate", contenders)
