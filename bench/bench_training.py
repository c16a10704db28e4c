"""Whole meta-iterations as a training makes them: new tasks, the gradients of their loss, a step of Adam.

The ways draw other numbers. So each is checked on one batch from the same parameters, and must have trained after the timing.
"""

import copy
from functools import partial

import pytest
import torch
from bench_learners import WAYS, WIDTH, of_protonet

import fastmeta
from measure import inner_loops, jax_iterations, jax_ways, meta_iterations, peers
from measure.contenders import compiled, mlp
from measure.meta_iterations import by_autograd, by_gradients, by_learner

SINUSOIDS, GLYPHS = (1, 40, 40, 1), (196, 256, 64, WAYS)  # widths of MLPs


@pytest.mark.parametrize("steps", [1, 5])
def bench_sinusoids(race, steps):
    """The setting of MAML's paper and of examples/sinusoid.py."""
    problem = meta_iterations.sinusoids()
    draw = jax_iterations.sinusoids(problem.tasks)
    run(race, f"sinusoid MAML K{steps}, 25 tasks", problem, *of_maml(problem, SINUSOIDS, 0.01, steps, "mse", draw))


def bench_glyphs(race):
    """MAML of examples/demo.py."""
    pytest.importorskip("matplotlib", reason="glyphs are drawn with it")
    problem = meta_iterations.glyphs(meta_iterations.halved(), tasks=16, lr=2e-3, chunk=16)
    draw = jax_iterations.glyphs(problem.tasks)
    run(race, "glyphs MAML K1, 16 tasks", problem, *of_maml(problem, GLYPHS, 0.4, 1, "cross_entropy", draw))


def bench_glyphs_protonet(race):
    """ProtoNet of examples/demo.py, on Conv4."""
    pytest.importorskip("matplotlib", reason="glyphs are drawn with it")
    problem = meta_iterations.glyphs(meta_iterations.letters(), tasks=4, lr=1e-3, chunk=4)
    batch, (learner, by_mm) = problem.batch(), of_protonet()

    def by(loss):
        model = copy.deepcopy(learner)  # parameters of its own
        return by_autograd(partial(loss, model), list(model.parameters()), problem, batch)

    ways = {"ext": by_learner(copy.deepcopy(learner), problem, batch), "eager": by(by_mm)}
    made = {"compiled": by(compiled(by_mm))}
    if jax_ways.installed():
        loss, draw = jax_ways.protonet(2.0 * WIDTH, WAYS), jax_iterations.glyphs(problem.tasks)
        made["jax"] = jax_iterations.JaxTraining(draw, loss, learner.parameters(), problem, batch)
    run(race, f"glyphs ProtoNet Conv4-{WIDTH}, 4 tasks", problem, ways, made)


def of_maml(problem, widths, rate, steps, loss, draw):
    """{name: way} and {name: way that is compiled first} from the same parameters."""
    params, batch, options = mlp(widths, 1, 1)[0], problem.batch(), {"steps": steps, "loss": loss}

    def own():
        return [p.detach().clone().requires_grad_() for p in params]

    def by_hand(params):
        return lambda *tasks: inner_loops.by_hand(params, rate, *tasks, **options)

    def by_jax(params, *tasks):
        return jax_ways.maml(jax_ways.mlp, steps, loss)(params, rate, *tasks)

    def by_vmap(params, *tasks):
        return inner_loops.by_vmap(params, rate, *tasks, **options)

    of_eager = own()
    learner = fastmeta.MAML(peers.mlp(own()), rate, **options)
    ways = {
        "ext": by_learner(learner, problem, batch),
        "eager": by_autograd(by_hand(of_eager), of_eager, problem, batch),
    }
    gradients = compiled(torch.func.grad_and_value(by_vmap), inner_loops.INDUCTOR["cpp-wrapper"])
    made = {"compiled": by_gradients(gradients, own(), problem, batch)}
    if jax_ways.installed():
        made["jax"] = jax_iterations.JaxTraining(draw, by_jax, params, problem, batch)
    return ways, made


def run(race, group, problem, ways, made):
    row = race(group, ways, compiled=made, truth=ways["eager"].results, mode="draw, gradient and Adam")
    for name in row["contenders"] if row else ():
        assert (ways | made)[name].trained(), f"{name}: its parameters must have moved, and be finite"
