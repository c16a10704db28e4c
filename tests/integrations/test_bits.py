"""On the way of small networks a step has the bits of the library's own, and so have the meta-gradients through it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import accelerate, higher, learn2learn, torchopt
from harness.installed_peers import peer

OURS = {"learn2learn": learn2learn, "higher": higher, "torchopt": torchopt}


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))


def task(seed):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(7, 3, generator=made), torch.randn(7, 2, generator=made)


def of_clones(make):
    """learn2learn's learners."""

    def run(l2l, lr):
        model = net()
        learner = make(l2l, model, lr)
        clone = learner.clone()
        for seed in range(3):
            x, y = task(seed)
            clone.adapt(F.mse_loss(clone(x), y))
        x, y = task(9)
        learned = list(getattr(learner, "lrs", ())) + ([lr] if isinstance(lr, torch.Tensor) else [])
        return F.mse_loss(clone(x), y), [*model.parameters(), *learned], list(clone.module.parameters())

    return run


def by_updates(l2l, lr):
    model = net()
    clone = l2l.clone_module(model)
    for seed in range(3):
        x, y = task(seed)
        grads = torch.autograd.grad(F.mse_loss(clone(x), y), clone.parameters(), create_graph=True)
        clone = l2l.update_module(clone, updates=[-lr * g for g in grads])
    x, y = task(9)
    return F.mse_loss(clone(x), y), list(model.parameters()), list(clone.parameters())


def by_higher(library, lr):
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with library.innerloop_ctx(model, inner, copy_initial_weights=False, override={"lr": [lr]}) as (fmodel, diffopt):
        for seed in range(3):
            x, y = task(seed)
            diffopt.step(F.mse_loss(fmodel(x), y))
        x, y = task(9)
        learned = [lr] if isinstance(lr, torch.Tensor) else []
        return F.mse_loss(fmodel(x), y), [*model.parameters(), *learned], list(fmodel.parameters())


def by_torchopt(library, lr):
    model = net()
    start = list(model.parameters())
    inner = library.MetaSGD(model, lr=lr)
    for seed in range(3):
        x, y = task(seed)
        inner.step(F.mse_loss(model(x), y))
    x, y = task(9)
    return F.mse_loss(model(x), y), start, list(model.parameters())


PROGRAMS = {
    "maml": ("learn2learn", of_clones(lambda l2l, model, lr: l2l.algorithms.MAML(model, lr=lr))),
    "meta_sgd": ("learn2learn", of_clones(lambda l2l, model, lr: l2l.algorithms.MetaSGD(model, lr=0.137))),
    "update_module": ("learn2learn", by_updates),
    "higher": ("higher", by_higher),
    "torchopt": ("torchopt", by_torchopt),
}


def bits(run, library, learned):
    lr = torch.tensor(0.137, requires_grad=True) if learned else 0.137
    loss, tensors, adapted = run(library, lr)
    return [loss, *torch.autograd.grad(loss, tensors, allow_unused=True), *adapted]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_steps_and_meta_gradients_have_the_bits_of_the_library(program, learned):
    name, run = PROGRAMS[program]
    library = peer(name)
    expected = bits(run, library, learned)
    assert all(map(equal, bits(run, OURS[name], learned), expected))
    with accelerate(library):
        assert all(map(equal, bits(run, library, learned), expected))


def equal(a, b):
    return a is b or torch.equal(a, b)


def test_a_step_is_rounded_twice():
    """p + (-lr g): what all three libraries write. One fused rounding has other bits somewhere in 500 elements."""
    torch.manual_seed(0)
    p, g = torch.randn(500), torch.randn(500)
    model = nn.ParameterList([p])
    for lr in (0.137, torch.tensor(0.137)):
        learn2learn.algorithms.maml_update(model, lr, [g])
        assert torch.equal(model[0], p + (-lr * g))
        model[0] = nn.Parameter(p)
