"""Peak memory that an op and its gradients take on top of their inputs, each way in a process of its own."""

import sys
from functools import partial

import bench_learners
import pytest
import torch

import fastmeta
from harness.any_module import general
from measure import distances, inner_loops
from measure.contenders import in_new_process
from measure.usage import peak

TITLE = "peak memory on top of the inputs, MiB (gradients included)"
SHAPE, WAYS_OF_LOSS = (
    (1, 256, 100_000, 64),
    ("ext", "mm"),
)  # T, Q, N, D; one with fewer ways races in bench_proto_loss.py
INNER_LOOPS = {"mlp_meta_loss": inner_loops.in_one_op, "mlp_adapt": inner_loops.in_two_ops}
WAYS = {"by hand": inner_loops.by_hand, "autograd": inner_loops.by_autograd}


def bench_memory_of_proto_loss(request, table):
    ways = WAYS_OF_LOSS[: 1 if _once(request) else None]
    peaks = {way: in_new_process(__file__, "proto_loss", way, *SHAPE) / 1024 for way in ways}
    table(TITLE, "proto_loss fwd+bwd euclidean T{} Q{} N{} D{}".format(*SHAPE), peaks)


@pytest.mark.parametrize("op", INNER_LOOPS)
def bench_memory_of_steps(request, table, op):
    once = _once(request)
    for steps in (5,) if once else (1, 5, 10, 50):
        peaks = {way: in_new_process(__file__, op, way, steps) / 1024 for way in (("ext",) if once else ("ext", *WAYS))}
        table(TITLE, f"{op} sinusoid MAML K{steps}", peaks)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 200])
def bench_memory_of_maml(request, table, steps):
    """On Conv4, by the native kernel, the general engine, unroll with all steps or every sqrt(K)-th kept, and autograd."""
    if _once(request) and steps > 1:
        pytest.skip("one is enough without timing")
    ways = ("ext", "general", "unroll", "unroll sqrt", *(["autograd"] if steps <= 20 else []))
    peaks = {way: in_new_process(__file__, "maml", way, steps, OMP_NUM_THREADS="1") / 1024 for way in ways}
    table(TITLE, f"MAML Conv4-32 K{steps}, 8 tasks, 5-way 1-shot, 15 queries each", peaks)


def _once(request):
    return request.config.getoption("benchmark_disable") or request.config.getoption("quick")


def proto_loss(way, *shape):
    return partial(_loss_and_gradients, way, *_draw(1, 4, 3, 2)), partial(_loss_and_gradients, way, *_draw(*shape))


def inner_loop(op, way, steps):
    """A small meta-iteration of the same kind, and the one to be measured."""
    fn = INNER_LOOPS[op] if way == "ext" else WAYS[way]
    large = inner_loops.SINUSOID._replace(steps=steps)
    return [inner_loops.meta_iteration(fn, w) for w in (large._replace(tasks=2, steps=1), large)]


def maml(way, steps):
    def run(images):
        model = bench_learners.net(images)
        learner = fastmeta.MAML(model, bench_learners.RATE, steps)
        learner = general(learner) if way == "general" else learner
        data = bench_learners.episodes(images.tasks, images.channels, images.side)
        if way == "autograd":
            value = bench_learners.one_by_one(model, steps, *data)
        elif way.startswith("unroll"):
            value = bench_learners.by_unroll(model, steps, *data, keep=way.partition(" ")[2] or "all")
        else:
            value = learner.loss(*data).mean()
        return torch.autograd.grad(value, list(model.parameters()))

    small = bench_learners.Images(tasks=1, width=4, side=16)  # what a thread keeps for the next call counts
    return partial(run, small), partial(run, bench_learners.OMNIGLOT)


def _draw(T, Q, N, D):
    query, prototypes = torch.randn(T, Q, D, requires_grad=True), torch.randn(T, N, D, requires_grad=True)
    return query, prototypes, torch.randint(0, N, (T, Q))


def _loss_and_gradients(way, query, prototypes, targets):
    if way == "ext":
        loss = fastmeta.proto_loss(query, prototypes, targets).mean()
    else:
        way = distances.eager_ways(1, 1, 1, 1)[way]
        loss = distances.loss(way, query, prototypes, "euclidean", 1.0, targets)
    return torch.autograd.grad(loss, (query, prototypes))


def main(op, way, *sizes):
    sizes = map(int, sizes)
    with fastmeta.backend("ext"):
        runs = {"proto_loss": proto_loss, "maml": maml}.get(op, partial(inner_loop, op))(way, *sizes)
        print(peak(*runs))


if __name__ == "__main__":
    main(*sys.argv[1:])
