import pytest
from common import backward, mlp, on_backends

import fastmeta


@pytest.mark.parametrize("widths", [(1, 40, 40, 1), (64, 5)], ids=str)
def bench_mlp_forward(race, widths):
    params, x, _ = mlp(widths, 25, 10)
    contenders = on_backends(lambda: backward([fastmeta.mlp_forward(params, x)], params))
    race(f"mlp_forward fwd+bwd {widths} T25 n10", contenders)
