"""What meta-training takes on 1 to 4096 H100s: cluster.py with the costs that were measured, its table and its picture.

A task's flops (flops.py) run at the share of the card's float32 peak that the way of the GPU (the general engine, torch's layers)
reaches of the CPU's on both cores in the sweeps; every operation that PyTorch dispatches is a launch of model.py. Meta-iterations of
the MLP are those of model.py throughout. Ranks differ log-normally, with the quartiles of the sweeps.
"""

import math
import statistics
from statistics import NormalDist
from typing import NamedTuple

import bench_learners
from bench_scaling import OF_RANK, OPERATIONS, QUERIES, SINUSOID, STEPS, SUPPORTS, conv4_flops
from style import plt

from gpu import model
from measure import cluster, counts, flops, network, results
from measure.resnet12 import WIDTHS, resnet12

CARD, LAUNCH = model.CARDS["H100"], model.LATENCY["eager"]
RANKS = [2**i for i in range(13)]
SHOWN = (8, 64, 512, 4096)
META_BATCH = 1024  # tasks in all of strong scaling; OF_RANK are those of a rank in weak scaling
CONVOLUTIONS, RESNET = ("MAML Conv4-32 28x28 K1", 4, "general engine"), ("ProtoNet ResNet-12 84x84, 4 images", 1, "ext")
QUARTILE = NormalDist().inv_cdf(0.75)


class Plan(NamedTuple):
    workload: cluster.Workload
    launches: int
    flops: float  # of a task
    share: float | None  # of the peak; None: by model.py


def plans(found):
    """{name: Plan} of a run's results, 5-way 1-shot with 15 queries of each class, but for the sinusoids."""
    operations = {name: cells["dispatched"] for name, cells in found["tables"][OPERATIONS].items()}
    small, large = bench_learners.Images(), bench_learners.Images(width=64, channels=3, side=84)
    shares = [share_of(found["rows"], *point) for point in (CONVOLUTIONS, RESNET)]
    encoder, of_image = resnet12(), flops.resnet12(WIDTHS, 3, 84, SUPPORTS + QUERIES)
    return {
        f"MAML 1-40-40-1, K{STEPS}": of_sinusoid(),
        f"MAML Conv4-32 28x28, K{STEPS}": of_conv4(small, operations["MAML"], shares[0], 1),
        f"Meta-SGD Conv4-64 84x84, K{STEPS}": of_conv4(large, operations["MetaSGD"], shares[0], 2),
        # two thirds of the time are the backward pass, which makes a layer's gradients after those behind it
        "ProtoNet ResNet-12 84x84": linear_plan(
            size(encoder), operations["ProtoNet"], flops.gradients(*of_image), shares[1], 2 / 3
        ),
    }


def share_of(rows, sweep, value, way):
    """Of the roofline's speed."""
    (row,) = [r for r in rows if r["mode"] == sweep and r["threads"] == 2 and value in r["sizes"].values()]
    return row["floor"] / row["contenders"][way]["seconds"]


def of_sinusoid():
    widths = SINUSOID.widths

    def kernels(tasks):
        return counts.mlp_meta_loss(widths, tasks, 10, 10, STEPS)

    launches = model.launches_on(CARD, kernels(1))
    workload = cluster.Workload(counts.parameters(widths), lambda tasks: model.seconds(CARD, kernels(tasks), "eager"))
    return Plan(workload, sum(x.count for x in launches), flops.meta_iteration(SINUSOID._replace(tasks=1)), None)


def of_conv4(images, operations, share, tensors):
    """`tensors`: how many as large as the parameters have gradients, with the learned rates."""
    return linear_plan(tensors * size(bench_learners.net(images)), operations, conv4_flops(images, STEPS), share)


def linear_plan(parameters, launches, of_task, share, overlap=0.0):
    compute = cluster.linear(launches * LAUNCH, of_task / (share * CARD.peak))
    return Plan(cluster.Workload(parameters, compute, overlap), launches, of_task, share)


def size(module):
    return sum(p.numel() for p in module.parameters())


def spread(rows, count=1000):
    """(deviation, factors) of our calls of 5 ms or more: the median of their quartiles, and quantiles of what is log-normal."""
    ours = [results.ours_of(row) for row in rows]
    logs = [math.log(high / low) for low, high in (cell["quartiles"] for cell in ours if cell["seconds"] > 5e-3)]
    sigma = statistics.median(logs) / (2 * QUARTILE)
    return sigma, [math.exp(sigma * NormalDist().inv_cdf((i + 0.5) / count)) for i in range(count)]


def efficiencies(workload, factors):
    """{"weak" and "strong": {R: efficiency}}."""
    return {
        "weak": {ranks: cluster.weak(workload, OF_RANK, ranks, factors) for ranks in RANKS},
        "strong": {ranks: cluster.strong(workload, META_BATCH, ranks, factors) for ranks in RANKS},
    }


def losses(workload, tasks, ranks, factors, alone):
    """{what takes it: seconds} of a meta-iteration beyond `alone`, its tasks' share of one rank's time."""
    usual = workload.compute(math.ceil(tasks / ranks))
    even = cluster.simulate(workload, tasks, ranks, iterations=1)
    uneven = cluster.simulate(workload, tasks, ranks, factors)
    few = "ranks without tasks" if ranks > tasks else "launches, and a card that is not full"
    return {few: usual - alone, "all-reduce": even - usual, "stragglers": uneven - even}


def stops(workload, scaling, found, factors):
    """The last R with an efficiency of 1/2, and what takes most at the next one, or at the last."""
    below = [ranks for ranks in RANKS if found[ranks] < 0.5]
    at = below[0] if below else RANKS[-1]
    tasks = META_BATCH if scaling == "strong" else OF_RANK * at
    alone = workload.compute(tasks) / at if scaling == "strong" else workload.compute(OF_RANK)
    lost = losses(workload, tasks, at, factors, alone)
    return f"{at // 2 if below else f'beyond {at}'}: {max(lost, key=lost.get)}"


COSTS = (
    "",
    "P",
    "launches",
    "Mflop a task",
    "share of the peak",
    "fixed, us",
    "us a task",
    "bytes summed",
    "all-reduce on 8 / 4096, us",
)


def cost_cells(found):
    for name, (workload, launches, of_task, share) in found.items():
        fixed, per_task = workload.compute(0), (workload.compute(4096) - workload.compute(2048)) / 2048
        sums = [sum(network.all_reduce(size, ranks) for size in cluster.buckets(workload.size)) for ranks in (8, 4096)]
        yield (
            name,
            f"{workload.parameters:,}",
            f"{launches:,.0f}",
            f"{of_task / 1e6:,.4g}",
            "by model.py" if share is None else f"{share:.0%}",
            f"{1e6 * fixed:,.0f}",
            f"{1e6 * per_task:,.3g}",
            f"{workload.size:,}",
            " / ".join(f"{1e6 * s:,.0f}" for s in sums),
        )


EFFICIENCIES = (
    "",
    "scaling",
    "one rank, ms",
    *(f"R = {ranks}" for ranks in SHOWN),
    "at least 1/2 up to R; what takes most next",
)


def efficiency_cells(found, scaled, factors):
    """`scaled`: {name: efficiencies}."""
    for name, plan in found.items():
        for scaling, of_ranks in scaled[name].items():
            tasks = OF_RANK if scaling == "weak" else META_BATCH
            yield (
                name if scaling == "weak" else "",
                f"{scaling}, {tasks} tasks {'a rank' if scaling == 'weak' else 'in all'}",
                f"{1e3 * plan.workload.compute(tasks):,.3g}",
                *(f"{of_ranks[ranks]:.1%}" for ranks in SHOWN),
                stops(plan.workload, scaling, of_ranks, factors),
            )


def picture(scaled):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for ax, scaling in zip(axes, ("weak", "strong"), strict=True):
        for name, of_scaling in scaled.items():
            ax.plot(*zip(*of_scaling[scaling].items(), strict=True), marker="o", markersize=3, label=name)
        ax.axhline(0.5, color="0.6", linestyle="--", linewidth=1)
        ax.set(xscale="log", xlabel="GPUs", ylim=(0, 1.05))
        ax.set_xscale("log", base=2)
    axes[0].set(title=f"weak scaling: {OF_RANK} tasks a GPU", ylabel="efficiency")
    axes[1].set(title=f"strong scaling: {META_BATCH} tasks in all")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure
