from functools import partial

import pytest
import torch

import fastmeta
from measure import distances, jax_ways
from measure.contenders import AtOnce, forward_and_backward, imported, on_backends


@pytest.mark.parametrize("metric", distances.METRICS)
@pytest.mark.parametrize("shape", distances.SHAPES, ids=str)
def bench_proto_loss(race, shape, metric):
    """Forward and backward to queries and prototypes; the truth is the expanded square."""
    T, Q, N, D = shape
    leaves = [torch.randn(distances.tasks(T, rows, D), requires_grad=True) for rows in (Q, N)]
    targets = torch.randint(0, N, distances.tasks(T, Q))
    ours, eager, made = contenders(shape, metric, targets)
    race(
        f"proto_loss fwd+bwd {metric} T{T} Q{Q} N{N} D{D}",
        on_backends(forward_and_backward(ours, leaves), reference=distances.fits(*shape))
        | {name: forward_and_backward(loss, leaves) for name, loss in eager.items()},
        also={
            "value_and_grad": AtOnce(fastmeta.proto_loss, (0, 1), (*leaves, targets), True, **options_of(shape, metric))
        },
        compiled={name: forward_and_backward(loss, leaves) for name, loss in made.items()}
        | jax_ways.of_proto_loss(leaves, targets, metric, distances.temperature_for(metric, D), distances.fits(*shape)),
        truth=forward_and_backward(eager["mm"], leaves),
        floor=(2 * sum(t.nbytes for t in leaves), 6 * T * Q * N * D),
        mode="forward + backward",
        memory=shape == distances.SHAPES[4] and metric == "euclidean",
    )


@pytest.mark.parametrize("metric", distances.METRICS)
def bench_proto_loss_without_grad(race, metric):
    T, Q, N, D = shape = distances.SHAPES[0]
    query, prototypes = torch.randn(distances.tasks(T, Q, D)), torch.randn(distances.tasks(T, N, D))
    targets = torch.randint(0, N, distances.tasks(T, Q))
    ours, eager, made = contenders(shape, metric, targets)
    race(
        f"proto_loss without grad {metric} T{T} Q{Q} N{N} D{D}",
        on_backends(lambda: ours(query, prototypes))
        | {name: lambda loss=loss: loss(query, prototypes) for name, loss in eager.items()},
        compiled={name: lambda loss=loss: loss(query, prototypes) for name, loss in made.items()}
        | jax_ways.of_proto_loss((query, prototypes), targets, metric, distances.temperature_for(metric, D), True),
        floor=(query.nbytes + prototypes.nbytes, 2 * T * Q * N * D),
    )


def contenders(shape, metric, targets):
    """The loss of queries and prototypes: ours, {name: eager way}, {name: way that is compiled first}."""
    options = options_of(shape, metric)

    def ours(query, prototypes):
        loss = fastmeta.proto_loss(query, prototypes, targets, **options)
        return loss.mean() if loss.ndim else loss

    eager, made = distances.contenders(partial(distances.loss, targets=targets), shape, metric)
    if distances.fits(*shape) and imported("pykeops.torch"):  # beyond that a call takes many seconds
        made["keops"] = lambda *leaves: distances.loss_by_keops(*leaves, metric, options["temperature"], targets)
    return ours, eager, made


def options_of(shape, metric):
    return {"metric": metric, "temperature": distances.temperature_for(metric, shape[-1])}
