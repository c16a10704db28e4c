from functools import partial

import pytest

import fastmeta
from measure.contenders import backward, by_reference, mlp, on_backends


@pytest.mark.parametrize(("widths", "classes"), [((1, 40, 40, 1), None), ((64, 5), 5)], ids=str)
def bench_mlp_loss(race, widths, classes):
    params, x, y = mlp(widths, 25, 10, classes)
    loss = "cross_entropy" if classes else "mse"
    eager, made = by_reference("mlp_loss", ("relu", loss), params, x, y)

    def run(way):
        return lambda: backward([way(params, x, y)], params)

    race(
        f"mlp_loss fwd+bwd {widths} T25 n10 {loss}",
        on_backends(run(partial(fastmeta.mlp_loss, loss=loss))) | {name: run(way) for name, way in eager.items()},
        compiled={name: run(way) for name, way in made.items()},
        mode="forward + backward",
    )
