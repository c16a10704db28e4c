import pytest

import fastmeta
from measure.contenders import backward, by_reference, mlp, on_backends


@pytest.mark.parametrize("widths", [(1, 40, 40, 1), (64, 5)], ids=str)
def bench_mlp_forward(race, widths):
    params, x, _ = mlp(widths, 25, 10)
    eager, made = by_reference("mlp_forward", ("relu",), params, x)

    def run(way):
        return lambda: backward([way(params, x)], params)

    race(
        f"mlp_forward fwd+bwd {widths} T25 n10",
        on_backends(run(fastmeta.mlp_forward)) | {name: run(way) for name, way in eager.items()},
        compiled={name: run(way) for name, way in made.items()},
        mode="forward + backward",
    )
