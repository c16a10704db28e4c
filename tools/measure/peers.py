"""Meta-iterations of MAML and Meta-SGD by the libraries that have them, task after task, as their documentation shows."""

import copy
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from measure.contenders import imported, pairs, why_missing

OPTIMISERS = {
    None: (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (torch.optim.Adam, {"eps": 1e-3}),
}
LOSSES = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


def contenders(arguments, steps, loss):
    """{name: a meta-iteration} by each library that is installed and has such rates."""
    found = {name: contender(name, modules, arguments, steps, loss) for name in WAYS if (modules := installed(name))}
    return {name: run for name, run in found.items() if run}


def contender(name, modules, arguments, steps, loss, **optimiser):
    """A meta-iteration in a library's language on `modules`: its own, or those of fastmeta.integrations. None: it has no such rates.
    `optimiser`: "momentum" or "Adam", where the library has them."""
    return WAYS[name](modules, arguments, steps, LOSSES[loss], **optimiser)


def missing():
    """{library: why it cannot be imported}, of all that race in some bench."""
    found = {name: next(filter(None, map(why_missing, modules)), None) for name, modules in MODULES.items()}
    found["jax"] = None if importlib.util.find_spec("jax") else "No module named 'jax'"  # imported where it races
    return {name: reason for name, reason in found.items() if reason}


def by_learn2learn(modules, arguments, steps, loss):
    (algorithms,) = modules
    model = mlp(arguments.params)
    if isinstance(arguments.lr, float):
        learner, rates = algorithms.MAML(model, arguments.lr), []
    else:
        rates = nn.ParameterList([nn.Parameter(rate.detach()) for rate in arguments.lr])
        learner = algorithms.MetaSGD(model, lrs=rates)

    def of_task(support_x, support_y, query_x, query_y):
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(loss(clone(support_x), support_y))
        return loss(clone(query_x), query_y)

    return mean_over_tasks(of_task, arguments, [*model.parameters(), *rates])


def by_higher(modules, arguments, steps, loss, optimiser=None):
    (higher,) = modules
    model = mlp(arguments.params)
    params = list(model.parameters())
    rates = [arguments.lr] * len(params) if isinstance(arguments.lr, float) else arguments.lr
    kind, options = OPTIMISERS[optimiser]
    optimizer = kind([{"params": [p]} for p in params], lr=1.0, **options)

    def of_task(support_x, support_y, query_x, query_y):
        override = {"lr": list(rates)}
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False, override=override) as (net, sgd):
            for _ in range(steps):
                sgd.step(loss(net(support_x), support_y))
            return loss(net(query_x), query_y)

    return mean_over_tasks(of_task, arguments, [*params, *learned(arguments.lr)])


def by_torchopt(modules, arguments, steps, loss, optimiser=None):
    (torchopt,) = modules
    if not isinstance(arguments.lr, float):
        return None
    model = mlp(arguments.params)
    kind, options = OPTIMISERS[optimiser]
    inner = (torchopt.MetaAdam if kind is torch.optim.Adam else torchopt.MetaSGD)(model, lr=arguments.lr, **options)
    params, initial = list(model.parameters()), [torchopt.extract_state_dict(x, by="reference") for x in (model, inner)]

    def of_task(support_x, support_y, query_x, query_y):
        for _ in range(steps):
            inner.step(loss(model(support_x), support_y))
        value = loss(model(query_x), query_y)
        for part, state in zip((model, inner), initial, strict=True):
            torchopt.recover_state_dict(part, state)
        return value

    return mean_over_tasks(of_task, arguments, params)


WAYS = {"learn2learn": by_learn2learn, "higher": by_higher, "torchopt": by_torchopt}
MODULES = {
    "learn2learn": ["learn2learn.algorithms"],
    "higher": ["higher"],
    "torchopt": ["torchopt"],
    "easyfsl": ["easyfsl.methods"],  # races in distances.py, as KeOps does; JAX in jax_ways.py
    "pykeops": ["pykeops.torch"],
}


def mlp(params):
    """A model whose parameters, in the order of `params`, share their memory; a model instead of `params`: one like it."""
    if isinstance(params, nn.Module):
        return copy.deepcopy(params)
    modules = []
    for weight, bias in pairs(params):
        layer = nn.Linear(*reversed(weight.shape))
        layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def learned(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.requires_grad]


def mean_over_tasks(of_task, arguments, leaves):
    """The mean query loss and its gradients to `leaves`, and to the inputs that need them."""
    leaves = [*leaves, *learned(arguments[2:])]

    def run():
        losses = [of_task(*task) for task in zip(*arguments[2:], strict=True)]
        value = torch.stack(losses).mean()
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run


def installed(name):
    """What is used of a library; () where it is not installed."""
    found = [imported(module) for module in MODULES[name]]
    return () if None in found else found
