import pytest
import torch
from common import mlp, on_backends

import fastmeta


@pytest.mark.parametrize("steps", [1, 5])
def bench_mlp_adapt(race, steps):
    """A meta-iteration in two ops: adapt, then the query loss, and its gradient to the initial parameters."""
    params, x, y = mlp((1, 40, 40, 1), 25, 10)

    def meta_iteration():
        adapted = fastmeta.mlp_adapt(params, 0.01, x, y, steps=steps, loss="mse")
        return torch.autograd.grad(fastmeta.mlp_loss(adapted, x, y, loss="mse").mean(), params)

    race(f"mlp_adapt + mlp_loss sinusoid T25 K{steps}", on_backends(meta_iteration))
