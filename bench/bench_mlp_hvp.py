import pytest
import torch
from common import mlp, on_backends

import fastmeta


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize(("widths", "tasks", "examples"), [((640, 5), 32, 25), ((784, 64, 64, 10), 1, 100)], ids=str)
def bench_mlp_hvp(race, widths, tasks, examples, curvature):
    params, x, y = mlp(widths, tasks, examples, widths[-1])
    params = [p.detach() for p in params]
    vectors = [torch.randn(tasks, *p.shape) for p in params]
    contenders = on_backends(lambda: fastmeta.mlp_hvp(params, vectors, x, y, curvature=curvature))
    race(f"mlp_hvp {widths} T{tasks} n{examples} {curvature}", contenders)
