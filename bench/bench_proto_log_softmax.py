import pytest
import torch

import fastmeta
from measure import distances
from measure.contenders import forward_and_backward, on_backends


@pytest.mark.parametrize("metric", distances.METRICS)
@pytest.mark.parametrize("shape", distances.SHAPES, ids=str)
def bench_proto_log_softmax(race, shape, metric):
    """Forward and backward to queries and prototypes; the truth is the expanded square."""
    T, Q, N, D = shape
    leaves = [torch.randn(distances.tasks(T, rows, D), requires_grad=True) for rows in (Q, N)]
    ours, (eager, made) = of_op(shape, metric), distances.contenders(distances.log_softmax, shape, metric)
    race(
        f"proto_log_softmax fwd+bwd {metric} T{T} Q{Q} N{N} D{D}",
        on_backends(forward_and_backward(ours, leaves), reference=distances.fits(*shape))
        | {name: forward_and_backward(way, leaves) for name, way in eager.items()},
        compiled={name: forward_and_backward(way, leaves) for name, way in made.items()},
        truth=forward_and_backward(eager["mm"], leaves),
        floor=(2 * (sum(t.nbytes for t in leaves) + 4 * T * Q * N), 6 * T * Q * N * D),
        mode="forward + backward",
    )


@pytest.mark.parametrize("metric", distances.METRICS)
def bench_proto_log_softmax_without_grad(race, metric):
    T, Q, N, D = shape = distances.SHAPES[0]
    query, prototypes = torch.randn(distances.tasks(T, Q, D)), torch.randn(distances.tasks(T, N, D))
    ours, (eager, made) = of_op(shape, metric), distances.contenders(distances.log_softmax, shape, metric)
    race(
        f"proto_log_softmax without grad {metric} T{T} Q{Q} N{N} D{D}",
        on_backends(lambda: ours(query, prototypes))
        | {name: lambda way=way: way(query, prototypes) for name, way in eager.items()},
        compiled={name: lambda way=way: way(query, prototypes) for name, way in made.items()},
        floor=(query.nbytes + prototypes.nbytes + 4 * T * Q * N, 2 * T * Q * N * D),
    )


def of_op(shape, metric):
    temperature = distances.temperature_for(metric, shape[-1])
    return lambda query, prototypes: fastmeta.proto_log_softmax(
        query, prototypes, metric=metric, temperature=temperature
    )
