from functools import partial

import pytest

import fastmeta
from measure.contenders import by_reference, mlp, on_backends


@pytest.mark.parametrize(("widths", "classes"), [((1, 40, 40, 1), None), ((64, 5), 5)], ids=str)
def bench_mlp_grad(race, widths, classes):
    params, x, y = mlp(widths, 25, 10, classes)
    params = [p.detach() for p in params]
    loss = "cross_entropy" if classes else "mse"
    eager, made = by_reference("mlp_grad", ("relu", loss), params, x, y)
    race(
        f"mlp_grad {widths} T25 n10 {loss}",
        on_backends(partial(fastmeta.mlp_grad, params, x, y, loss=loss))
        | {name: partial(way, params, x, y) for name, way in eager.items()},
        compiled={name: partial(way, params, x, y) for name, way in made.items()},
    )
