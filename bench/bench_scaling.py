"""How the cost grows: each sweep changes one size and holds the others. Our way, the eager ones of others, and the floor."""

from functools import partial
from types import SimpleNamespace

import bench_learners
import bench_proto_loss
import bench_sgd_step
import pytest
import torch
from bench_learners import loss_and_gradients

import fastmeta
from harness.any_module import general
from measure import flops, inner_loops
from measure.contenders import backward, forward_and_backward

SLOW = 0.3  # s: a way that takes longer at one size is left out at the larger ones of its sweep
PLAN = SimpleNamespace(budget=0.3, rounds=3)  # of a point
SINUSOID = inner_loops.WORKLOADS["W1 sinusoid MAML K5"]
CONV4 = bench_learners.Images(tasks=4)
SUPPORTS, QUERIES = (bench_learners.WAYS * k for k in (bench_learners.SHOTS, bench_learners.QUERIES))

too_slow = {}  # (sweep, way): (size, seconds)


def over(size, *values):
    return pytest.mark.parametrize(size, values)


def point(race, sweep, size, value, contenders, floor, truth, memory=False):
    """A race at one value of a size. `truth`: the contender that is right in float64."""
    left = {way: found for way in contenders if (found := too_slow.get((sweep, way))) and found[0] < value}
    row = race(
        f"{sweep}: {size} = {value}", {way: fn for way, fn in contenders.items() if way not in left}, truth=contenders[truth],
        floor=floor, mode=sweep, sizes={size: value}, plan=PLAN, memory=memory,
    )  # fmt: skip
    if row:
        row["not timed"] |= {way: f"took {seconds:.2g} s at {size} = {at}" for way, (at, seconds) in left.items()}
        for way, cell in row["contenders"].items():
            if cell["seconds"] > SLOW and way != "ext":
                too_slow.setdefault((sweep, way), (value, cell["seconds"]))


@over("N", 2, 5, 10, 20, 50, 100, 200, 500)
def bench_ways(race, N):
    point(race, "proto_loss T32 Q75 D64", "N", N, *of_proto_loss(32, 75, N, 64), "mm")


@over("D", 16, 64, 256, 1024, 4096)
def bench_features(race, D):
    point(race, "proto_loss T32 Q75 N5", "D", D, *of_proto_loss(32, 75, 5, D), "mm")


def of_proto_loss(*shape):
    T, Q, N, D = shape
    leaves = [torch.randn(T, rows, D, requires_grad=True) for rows in (Q, N)]
    ours, eager, _ = bench_proto_loss.contenders(shape, "euclidean", torch.randint(0, N, (T, Q)))
    ways = {"ext": ours, "cdist": eager["cdist"], "mm": eager["mm"]}
    floor = (2 * sum(t.nbytes for t in leaves), 6 * T * Q * N * D)
    return {name: forward_and_backward(way, leaves) for name, way in ways.items()}, floor


@over("P", 100, 1000, 10_000, 100_000, 300_000)
def bench_parameters(race, P):
    """One tensor, one rate."""
    params, grads = [torch.randn(P, requires_grad=True)], [torch.randn(32, P, requires_grad=True)]
    lr = torch.tensor(0.1)
    ways = {"ext": fastmeta.sgd_step, "eager": bench_sgd_step.eager, "foreach": bench_sgd_step.foreach}

    def run(step, lr):
        return lambda: backward(step(params, grads, lr), [*params, *grads])

    ways = {name: run(step, lr if name == "ext" else [lr]) for name, step in ways.items()}
    floor = (4 * grads[0].nbytes, 0)  # forward: grads, new; backward: cotangents, dgrads
    point(race, "sgd_step T32", "P", P, ways, floor, "eager")


@over("T", 1, 4, 16, 64, 256, 1024, 4096)
def bench_tasks(race, T):
    point(race, "sinusoid MAML K5", "T", T, *of_sinusoid(SINUSOID._replace(tasks=T)), "by hand")


@over("K", 1, 2, 5, 10, 20, 50)
def bench_steps(race, K):
    point(race, "sinusoid MAML T25", "K", K, *of_sinusoid(SINUSOID._replace(steps=K)), "by hand")


@over("H", 8, 16, 32, 64, 128, 256)
def bench_width(race, H):
    point(race, "MAML 1-H-H-1 T25 K5", "H", H, *of_sinusoid(SINUSOID._replace(widths=(1, H, H, 1))), "by hand")


def of_sinusoid(workload):
    arguments = inner_loops.arguments(workload)
    ways = {"ext": inner_loops.in_one_op, "by hand": inner_loops.by_hand, "autograd": inner_loops.by_autograd}
    made = {name: inner_loops.eager(partial(way, **workload.options), arguments) for name, way in ways.items()}
    return made, (0, flops.meta_iteration(workload))


@over("T", 1, 4, 16, 32)
def bench_tasks_of_conv4(race, T):
    ways, floor = of_conv4(CONV4._replace(tasks=T), 1)
    point(race, "MAML Conv4-32 28x28 K1", "T", T, ways, floor, "autograd" if T < 8 else "ext", memory=T <= 16)


@over("K", 1, 5, 20, 50)
def bench_steps_of_conv4(race, K):
    point(race, "MAML Conv4-32 28x28 T4", "K", K, *of_conv4(CONV4, K), "autograd" if K < 8 else "ext")


def of_conv4(images, steps):
    model = bench_learners.net(images)
    data = bench_learners.episodes(images.tasks, images.channels, images.side)
    learner = fastmeta.MAML(model, bench_learners.RATE, steps)
    ways = {
        "ext": lambda *data: learner.loss(*data).mean(),
        "general engine": lambda *data: general(learner).loss(*data).mean(),
        "autograd": partial(bench_learners.one_by_one, model, steps),
    }
    of = partial(flops.conv4, images.width, images.channels, images.side, bench_learners.WAYS)
    floor = (0, images.tasks * flops.of_steps(of(SUPPORTS), of(QUERIES), steps))
    return {name: loss_of(way, model, data) for name, way in ways.items()}, floor


def loss_of(way, model, data):
    """The loss alone, its gradients computed too: in float32 rounding decides which pixels win, and the gradients see it."""
    run = loss_and_gradients(way, model, data)
    return lambda: run()[0]
