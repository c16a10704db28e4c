import pytest
import torch

import fastmeta
from fastmeta import ragged
from measure.contenders import forward_and_backward, on_backends


@pytest.mark.parametrize("shape", [(16, 5, 5), (64, 5, 5), (256, 5, 5), (64, 3, 10)], ids=str)
def bench_ragged(race, shape):
    """Forward and backward of `T` tasks, `least` to `most` ways, 1 to 5 shots and 10 to 40 queries, 64 features, and a loop over them."""
    T, least, most = shape
    D, generator = 64, torch.Generator().manual_seed(0)
    ways = torch.randint(least, most + 1, (T,), generator=generator).tolist()
    shots = [n * int(torch.randint(1, 6, (), generator=generator)) for n in ways]
    queries = torch.randint(10, 41, (T,), generator=generator).tolist()
    leaves = [torch.randn(sum(sizes), D, requires_grad=True) for sizes in (shots, queries)]
    labels, targets = (
        torch.cat([torch.arange(k) % n for k, n in zip(sizes, ways, strict=True)]) for sizes in (shots, queries)
    )

    def ours(support, query):
        return ragged.proto_loss(query, ragged.prototypes(support, labels, shots, ways), targets, queries, ways)

    def loop(support, query):
        parts = (support.split(shots), labels.split(shots), query.split(queries), targets.split(queries))
        return torch.stack(
            [
                fastmeta.proto_loss(q, fastmeta.prototypes(x, y, n), t)
                for x, y, q, t, n in zip(*parts, ways, strict=True)
            ]
        )

    race(
        f"ragged proto_loss fwd+bwd T{T} N{least}-{most} D{D}",
        on_backends(forward_and_backward(ours, leaves), reference=False)
        | {"loop over tasks": forward_and_backward(loop, leaves)},
        truth=forward_and_backward(loop, leaves),
        floor=(2 * sum(t.nbytes for t in leaves), 6 * sum(q * n for q, n in zip(queries, ways, strict=True)) * D),
        mode="forward + backward",
    )
