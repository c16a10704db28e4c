from functools import partial

import pytest
import torch

import fastmeta
from measure import flops, inner_loops, inner_steps, jax_ways, peers
from measure.contenders import AtOnce, on_backends
from measure.inner_loops import WORKLOADS


@pytest.mark.parametrize("name", WORKLOADS)
def bench_mlp_meta_loss(race, name):
    """A whole meta-iteration: adaptation, query loss and the gradients to parameters, rates and features, as the workload asks."""
    workload = WORKLOADS[name]
    arguments = inner_loops.arguments(workload)
    eager, made = inner_loops.contenders(arguments, **workload.options)
    race(
        f"mlp_meta_loss {name}, {workload.tasks} tasks, {workload.support} + {workload.query} examples",
        on_backends(inner_loops.eager(partial(inner_loops.in_one_op, **workload.options), arguments)) | eager,
        also={
            "learner.loss": by_learner(arguments, **workload.options),
            "value_and_grad": at_once(arguments, **workload.options),
        },
        compiled=made | jax_ways.of_mlp(arguments, **workload.options),
        floor=(0, flops.meta_iteration(workload)),
        mode="meta-iteration",
        memory=name == "W1 sinusoid MAML K5",
    )


@pytest.mark.parametrize("form", inner_steps.FORMS)
def bench_mlp_meta_loss_steps(race, form):
    """Weights of the examples, other examples or an optimiser's state at every step, beside torch.vmap of torch.func.grad."""
    arguments, ours, plain = inner_steps.problem(form)
    race(
        f"mlp_meta_loss {form}, W1 sinusoid K5, 25 tasks, 10 + 10 examples",
        on_backends(inner_loops.eager(ours, arguments)) | {"vmap": inner_loops.eager(plain, arguments)},
        compiled={
            f"compiled vmap {kind}".strip(): inner_loops.in_one_graph(plain, arguments, inductor)
            for kind, inductor in inner_loops.INDUCTOR.items()
            if kind != "max-autotune"
        },
        mode="meta-iteration",
    )


def at_once(arguments, **options):
    learned = tuple(i for i, a in enumerate(arguments) if peers.learned(a))
    return AtOnce(fastmeta.mlp_meta_loss, learned, arguments, **options)


def by_learner(arguments, steps, loss):
    """MAML, or MetaSGD where the rates are learned."""
    model = peers.mlp(arguments.params)
    if isinstance(arguments.lr, float):
        learner = fastmeta.MAML(model, arguments.lr, steps, loss=loss)
    else:
        learner = fastmeta.MetaSGD(model, arguments.lr[0].flatten()[0].item(), steps, loss=loss)
    leaves = [*learner.parameters(), *peers.learned(arguments[2:])]

    def run():
        value = learner.loss(*arguments[2:]).mean()
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run
