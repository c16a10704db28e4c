import pytest
from common import backward, mlp, on_backends

import fastmeta


@pytest.mark.parametrize(("widths", "classes"), [((1, 40, 40, 1), None), ((64, 5), 5)], ids=str)
def bench_mlp_loss(race, widths, classes):
    params, x, y = mlp(widths, 25, 10, classes)
    loss = "cross_entropy" if classes else "mse"
    contenders = on_backends(lambda: backward([fastmeta.mlp_loss(params, x, y, loss=loss)], params))
    race(f"mlp_loss fwd+bwd {widths} T25 n10 {loss}", contenders)
