import pytest
from common import mlp, on_backends

import fastmeta


@pytest.mark.parametrize(("widths", "classes"), [((1, 40, 40, 1), None), ((64, 5), 5)], ids=str)
def bench_mlp_grad(race, widths, classes):
    params, x, y = mlp(widths, 25, 10, classes)
    params = [p.detach() for p in params]
    loss = "cross_entropy" if classes else "mse"
    contenders = on_backends(lambda: fastmeta.mlp_grad(params, x, y, loss=loss))
    race(f"mlp_grad {widths} T25 n10 {loss}", contenders)
