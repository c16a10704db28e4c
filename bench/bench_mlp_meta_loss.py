import pytest
import torch
from common import mlp, on_backends

import fastmeta

WORKLOADS = {  # widths, tasks, examples, steps, rates
    "sinusoid MAML K1": ((1, 40, 40, 1), 25, 10, 1, "scalar"),
    "sinusoid MAML K5": ((1, 40, 40, 1), 25, 10, 5, "scalar"),
    "sinusoid Meta-SGD K1": ((1, 40, 40, 1), 25, 10, 1, "per parameter"),
    "sinusoid Meta-SGD K5": ((1, 40, 40, 1), 25, 10, 5, "per parameter"),
    "linear head D64 K5": ((64, 5), 32, 25, 5, "scalar"),
    "linear head D1600 K5": ((1600, 5), 32, 25, 5, "scalar"),
}


@pytest.mark.parametrize("workload", WORKLOADS)
def bench_mlp_meta_loss(race, workload):
    """A whole meta-iteration: adaptation, query loss and the meta-gradient to parameters (and rates)."""
    widths, tasks, examples, steps, rates = WORKLOADS[workload]
    classes = 5 if len(widths) == 2 else None
    params, x, y = mlp(widths, tasks, examples, classes)
    lr = 0.01 if rates == "scalar" else [torch.full_like(p, 0.01).requires_grad_() for p in params]
    leaves = params if rates == "scalar" else [*params, *lr]
    options = {"steps": steps, "loss": "cross_entropy" if classes else "mse"}

    def meta_iteration():
        return torch.autograd.grad(fastmeta.mlp_meta_loss(params, lr, x, y, x, y, **options).mean(), leaves)

    race(f"mlp_meta_loss {workload}", on_backends(meta_iteration))
