import pytest
import torch
from common import backward, on_backends

import fastmeta


@pytest.mark.parametrize("shape", [(1, 25, 5, 64), (32, 25, 5, 640)], ids=str)
def bench_prototypes(race, shape):
    T, S, N, D = shape
    support, labels = torch.randn(T, S, D, requires_grad=True), torch.arange(S).remainder(N).expand(T, S)
    contenders = on_backends(lambda: backward([fastmeta.prototypes(support, labels, N)], [support]))
    race(f"prototypes fwd+bwd T{T} S{S} N{N} D{D}", contenders)
