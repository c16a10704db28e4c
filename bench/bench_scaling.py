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
from measure import distances, flops, inner_loops, noise_scale
from measure.common import backward, forward_and_backward
from measure.dispatched import dispatched
from measure.resnet12 import WIDTHS, resnet12

SLOW = 0.3  # s: a way that takes longer at one size is left out at the larger ones of its sweep
PLAN = SimpleNamespace(budget=0.3, rounds=3)  # of a point
SINUSOID = inner_loops.WORKLOADS["W1 sinusoid MAML K5"]
CONV4 = bench_learners.Images(tasks=4)
SUPPORTS, QUERIES = (bench_learners.WAYS * k for k in (bench_learners.SHOTS, bench_learners.QUERIES))
OF_RANK, STEPS = 8, 5  # tasks of a GPU and inner steps in plan.py
OPERATIONS = "operations that PyTorch dispatches in a meta-iteration of 8 tasks, 5 steps, by the general engine"
NOISE, NOISE_AT = "gradient noise scale of MAML on sinusoids, tasks", (0, 100, 1000, 4000)

too_slow = {}  # (sweep, way): (size, seconds)


def over(size, *values):
    return pytest.mark.parametrize(size, values)


def point(race, sweep, size, value, contenders, floor, truth, memory=False):
    """A race at one value of a size. `truth`: the contender that is right in float64."""
    left = {
        way: too_slow[sweep, way] for way in contenders if (sweep, way) in too_slow and too_slow[sweep, way][0] < value
    }
    raced = {way: fn for way, fn in contenders.items() if way not in left}
    row = race(
        f"{sweep}: {size} = {value}",
        raced,
        truth=contenders[truth],
        floor=floor,
        mode=sweep,
        sizes={size: value},
        plan=PLAN,
        memory=memory,
    )
    if row:
        row["not timed"] |= {way: f"took {seconds:.2g} s at {size} = {at}" for way, (at, seconds) in left.items()}
        slow = {
            way: cell["seconds"] for way, cell in row["contenders"].items() if cell["seconds"] > SLOW and way != "ext"
        }
        too_slow.update(
            {(sweep, way): (value, seconds) for way, seconds in slow.items() if (sweep, way) not in too_slow}
        )


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

    point(
        race,
        "sgd_step T32",
        "P",
        P,
        {name: run(step, lr if name == "ext" else [lr]) for name, step in ways.items()},
        (4 * grads[0].nbytes, 0),  # forward: grads, new; backward: cotangents, dgrads
        "eager",
    )


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
    point(
        race,
        "MAML Conv4-32 28x28 K1",
        "T",
        T,
        *of_conv4(CONV4._replace(tasks=T), 1),
        "autograd" if T < 8 else "ext",
        T <= 16,
    )


@over("K", 1, 5, 20, 50)
def bench_steps_of_conv4(race, K):
    point(race, "MAML Conv4-32 28x28 T4", "K", K, *of_conv4(CONV4, K), "autograd" if K < 8 else "ext")


def of_conv4(images, steps):
    model = bench_learners.net(images)
    data = bench_learners.episodes(images.tasks, images.channels, images.side)
    learner = fastmeta.MAML(model, bench_learners.RATE, steps)
    ways = {
        "ext": lambda *data: learner.loss(*data).mean(),
        "general engine": lambda *data: bench_learners.general(learner).loss(*data).mean(),
        "autograd": partial(bench_learners.one_by_one, model, steps),
    }
    return {name: loss_of(way, model, data) for name, way in ways.items()}, (
        0,
        images.tasks * conv4_flops(images, steps),
    )


def loss_of(way, model, data):
    """The loss alone, its gradients computed too: in float32 rounding decides which pixels win, and the gradients see it."""
    run = loss_and_gradients(way, model, data)
    return lambda: run()[0]


def conv4_flops(images, steps):
    """Of a task."""
    of = partial(flops.conv4, images.width, images.channels, images.side, bench_learners.WAYS)
    return flops.of_steps(of(SUPPORTS), of(QUERIES), steps)


@over("T", 1)
def bench_resnet12(race, T):
    """Two classes, an image and a query each: what share of the peak the layers reach, for bench/cluster.py."""
    encoder, labels = fastmeta.use_batch_statistics(resnet12()), torch.arange(2).expand(T, 2)
    images = torch.randn(2, T, 2, 3, 84, 84)
    learner = fastmeta.ProtoNet(encoder, num_classes=2)

    def plain(support_x, support_y, query_x, query_y):
        both = encoder(torch.cat([support_x, query_x], 1).flatten(0, 1)).unflatten(0, (T, 4))
        return distances.loss(distances.by_cdist, both[:, 2:], both[:, :2], "euclidean", 1.0, query_y)

    ways = {"ext": lambda *data: learner.loss(*data).mean(), "plain": plain}
    data = images[0], labels, images[1], labels
    point(
        race,
        "ProtoNet ResNet-12 84x84, 4 images",
        "T",
        T,
        {name: loss_of(way, encoder, data) for name, way in ways.items()},
        (0, T * flops.gradients(*flops.resnet12(WIDTHS, 3, 84, 4))),
        "plain",
    )


def bench_noise_scale(table):
    """No race: how many tasks a meta-batch can use, for bench/cluster.py."""
    torch.manual_seed(0)
    for iterations, scale in noise_scale.of_sinusoids(NOISE_AT).items():
        table(NOISE, f"after {iterations} meta-iterations of 25 tasks", {"tasks": scale})


def bench_operations(table):
    """No race: what is launched on a GPU, for plan.py. Few channels take the operations of many."""
    images = bench_learners.Images(tasks=OF_RANK, width=4, side=16)
    encoder = fastmeta.use_batch_statistics(resnet12(images.channels))
    learners = [
        *(of(bench_learners.net(images), bench_learners.RATE, STEPS) for of in (fastmeta.MAML, fastmeta.MetaSGD)),
        fastmeta.ProtoNet(encoder, num_classes=bench_learners.WAYS),
    ]
    data = bench_learners.episodes(images.tasks, images.channels, images.side)
    for learner in learners:
        of_engine = bench_learners.general(learner)
        run = loss_of(lambda *data, of_engine=of_engine: of_engine.loss(*data).mean(), of_engine, data)
        table(OPERATIONS, type(learner).__name__, {"dispatched": dispatched(run)})
