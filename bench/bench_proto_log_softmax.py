import pytest
import torch
from common import on_backends

import fastmeta

SHAPES = [(1, 75, 5, 64), (1, 75, 5, 1600), (32, 75, 5, 640), (1, 300, 60, 64)]


@pytest.mark.parametrize("name", ["ext", "reference", "cdist"])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_proto_log_softmax(race, shape, metric, name):
    T, Q, N, D = shape
    query, prototypes = torch.randn(T, Q, D), torch.randn(T, N, D)
    power = 2 if metric == "sqeuclidean" else 1
    contenders = on_backends(lambda: fastmeta.proto_log_softmax(query, prototypes, metric=metric))
    contenders["cdist"] = lambda: (-(torch.cdist(query, prototypes) ** power)).log_softmax(-1)
    race(f"proto_log_softmax fwd {metric} T{T} Q{Q} N{N} D{D}", contenders, name)
