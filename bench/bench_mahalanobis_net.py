import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from measure.contenders import forward_and_backward, on_backends


def by_inverses(support, query, labels, targets, ways):
    """Task by task and class by class, as in simple CNAPs' program."""
    losses = []
    for x, q, y, t in zip(support, query, labels, targets, strict=True):
        eye, of_task, logits = torch.eye(x.shape[1], dtype=x.dtype), torch.cov(x.T), []
        for own in (x[y == k] for k in range(ways)):
            share = len(own) / (len(own) + 1)
            precision = torch.inverse(share * torch.cov(own.T) + (1 - share) * of_task + eye)
            apart = q - own.mean(0)
            logits.append(-((apart @ precision) * apart).sum(1))
        losses.append(F.cross_entropy(torch.stack(logits, 1), t))
    return torch.stack(losses)


@pytest.mark.parametrize("shape", [(1, 5, 512), (1, 20, 512), (8, 5, 64)], ids=str)
def bench_mahalanobis_net(race, shape):
    """Forward and backward of `T` tasks on given features, 5 shots, 75 queries."""
    T, ways, D = shape
    leaves = [torch.randn(T, rows, D, requires_grad=True) for rows in (5 * ways, 75)]
    labels, targets = (torch.arange(rows).remainder(ways).expand(T, rows) for rows in (5 * ways, 75))
    learner = fastmeta.MahalanobisNet(nn.Identity(), num_classes=ways)
    rows = min(10 * ways, D)
    race(
        f"MahalanobisNet fwd+bwd T{T} N{ways} D{D}",
        on_backends(forward_and_backward(lambda x, q: learner.loss(x, labels, q, targets), leaves), reference=False)
        | {"by inverses": forward_and_backward(lambda x, q: by_inverses(x, q, labels, targets, ways), leaves)},
        truth=forward_and_backward(lambda x, q: by_inverses(x, q, labels, targets, ways), leaves),
        floor=(2 * sum(t.nbytes for t in leaves), 6 * T * ways * rows * D * (rows + 150)),
        mode="forward + backward",
    )
