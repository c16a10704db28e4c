"""One program in another library's language: on the import swap (ext), on the library itself, on it accelerated, and batched."""

import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from fastmeta.integrations import accelerate, easyfsl, higher, learn2learn, torchopt
from fastmeta.loops.optimisers import AdamEpsHat
from measure import inner_loops, peers
from measure.contenders import imported, on_backends

SWAPS = {"learn2learn": (learn2learn.algorithms,), "higher": (higher,), "torchopt": (torchopt,)}
PAIRS = [
    (name, workload)
    for name in SWAPS
    for workload, sizes in inner_loops.WORKLOADS.items()
    if "sinusoid" in workload and not (sizes.rate_per_parameter and name == "torchopt")  # which has one rate
]


def accelerated(name, run):
    def run_inside():
        with accelerate(sys.modules[name]):
            return run()

    return run_inside


@pytest.mark.parametrize(("name", "workload"), PAIRS)
def bench_inner_loops(race, name, workload):
    """A meta-iteration, task after task; batched: the two lines of docs/integrations.md."""
    sizes = inner_loops.WORKLOADS[workload]
    arguments = inner_loops.arguments(sizes)

    def way(modules):
        return peers.contender(name, modules, arguments, **sizes.options)

    others = {}
    if modules := peers.installed(name):
        others = {name: way(modules), "accelerated": accelerated(name, way(modules))}
    race(
        f"{workload} in {name}'s language, {sizes.tasks} tasks",
        on_backends(way(SWAPS[name])) | others,
        also={"batched": inner_loops.eager(partial(inner_loops.in_one_op, **sizes.options), arguments)},
        mode="meta-iteration",
    )


@pytest.mark.parametrize("optimiser", ["momentum", "Adam"])
@pytest.mark.parametrize("name", ["higher", "torchopt"])
def bench_inner_optimisers(race, name, optimiser):
    """The same, by steps with momentum or of Adam."""
    sizes = inner_loops.WORKLOADS["W1 sinusoid MAML K5"]
    arguments = inner_loops.arguments(sizes)

    def way(modules):
        return peers.contender(name, modules, arguments, **sizes.options, optimiser=optimiser)

    adam = AdamEpsHat if name == "higher" else fastmeta.Adam  # eps stands beside another root there

    def in_one_op(params, lr, *data, **options):
        ours = adam(lr, eps=1e-3) if optimiser == "Adam" else fastmeta.SGD(lr, momentum=0.9)
        return fastmeta.mlp_meta_loss(params, None, *data, **options, optimiser=ours).mean()

    others, modules = {}, peers.installed(name)
    if modules and (name, optimiser) != ("torchopt", "Adam"):  # whose gradient is NaN where a ReLU is dead
        others = {name: way(modules), "accelerated": accelerated(name, way(modules))}
    race(
        f"W4 sinusoid MAML K5 {optimiser} in {name}'s language, {sizes.tasks} tasks",
        on_backends(way(SWAPS[name])) | others,
        also={"batched": inner_loops.eager(partial(in_one_op, **sizes.options), arguments)},
        mode="meta-iteration",
    )


def by_learn2learn(module, support, labels, query):
    classifier = module.PrototypicalClassifier()
    classifier.fit_(support, labels)
    return classifier(query)


def by_easyfsl(module, support, labels, query):
    model = module.PrototypicalNetworks()
    model.process_support_set(support, labels)
    return model(query)


HEADS = {
    "learn2learn": (by_learn2learn, learn2learn.nn, "learn2learn.nn", "sqeuclidean"),
    "easyfsl": (by_easyfsl, easyfsl.methods, "easyfsl.methods", "euclidean"),
}


@pytest.mark.parametrize("D", [64, 640])
@pytest.mark.parametrize("name", HEADS)
def bench_heads(race, name, D):
    """The loss of an episode and its gradients to the features."""
    head, swap, theirs, metric = HEADS[name]
    labels, targets = torch.arange(25).remainder(5), torch.arange(75).remainder(5)
    features = [(torch.randn(n, D) / D**0.5).requires_grad_() for n in (25, 75)]

    def way(loss):
        def run():
            value = loss(*features)
            return value.detach(), *torch.autograd.grad(value, features)

        return run

    def on(module):
        return way(lambda support, query: F.cross_entropy(head(module, support, labels, query), targets))

    def by_ops(support, query):
        return fastmeta.proto_loss(query, fastmeta.prototypes(support, labels, 5), targets, metric=metric)

    library = imported(theirs)
    others = {name: on(library), "accelerated": accelerated(name, on(library))} if library else {}
    race(
        f"prototypical head in {name}'s language, 25 + 75 examples, D = {D}",
        on_backends(on(swap)) | others,
        also={"proto_loss": way(by_ops)},
        mode="forward + backward",
    )
