import pytest
import torch

import fastmeta
from measure.contenders import backward, by_reference, on_backends


@pytest.mark.parametrize("shape", [(1, 25, 5, 64), (32, 25, 5, 640)], ids=str)
def bench_prototypes(race, shape):
    T, S, N, D = shape
    support, labels = torch.randn(T, S, D, requires_grad=True), torch.arange(S).remainder(N).expand(T, S)
    eager, made = by_reference("prototypes", (N,), support, labels)

    def run(way):
        return lambda: backward([way(support, labels)], [support])

    race(
        f"prototypes fwd+bwd T{T} S{S} N{N} D{D}",
        on_backends(run(lambda x, y: fastmeta.prototypes(x, y, N))) | {name: run(way) for name, way in eager.items()},
        compiled={name: run(way) for name, way in made.items()},
        mode="forward + backward",
    )
