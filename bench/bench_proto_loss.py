import pytest
import torch
import torch.nn.functional as F
from bench_proto_log_softmax import SHAPES
from common import on_backends

import fastmeta


@pytest.mark.parametrize("name", ["ext", "reference", "cdist", "mm"])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_proto_loss(race, shape, metric, name):
    """Forward and backward to queries and prototypes, against eager torch.cdist and the expanded square by matrix products."""
    T, Q, N, D = shape
    query, prototypes = torch.randn(T, Q, D, requires_grad=True), torch.randn(T, N, D, requires_grad=True)
    targets = torch.randint(0, N, (T, Q))
    power = 2 if metric == "sqeuclidean" else 1

    def by_cdist():
        loss = F.cross_entropy((-(torch.cdist(query, prototypes) ** power)).flatten(0, 1), targets.flatten())
        return torch.autograd.grad(loss, (query, prototypes))

    def by_mm():
        centre = prototypes.mean(1, keepdim=True)
        q, c = query - centre, prototypes - centre
        square = q.square().sum(-1, keepdim=True) + c.square().sum(-1).unsqueeze(1) - 2 * q @ c.mT
        logits = -square if power == 2 else -square.clamp(min=1e-12).sqrt()
        return torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), targets.flatten()), (query, prototypes))

    def ours():
        return torch.autograd.grad(
            fastmeta.proto_loss(query, prototypes, targets, metric=metric).mean(), (query, prototypes)
        )

    race(f"proto_loss fwd+bwd {metric} T{T} Q{Q} N{N} D{D}", on_backends(ours) | {"cdist": by_cdist, "mm": by_mm}, name)
