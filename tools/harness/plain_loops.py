"""The loop of a learner's paper, task after task, with autograd through everything; episodes for it, and how learners compare with it."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmeta

D = torch.float64
WEIGHTS = torch.tensor([1.0, -0.5, 2.0, 0.0], dtype=D)  # of the tasks' losses
OPTIONS = {"allow_unused": True, "materialize_grads": True}


def episode(tasks=4, shots=6, queries=7, shape=(6,)):
    """Three ways; one example of the support and one of the query do not count."""
    found = []
    for n in (shots, queries):
        y = torch.randint(0, 3, (tasks, n))
        y[-1, -1] = -100
        found += [torch.randn(tasks, n, *shape, dtype=D), y]
    return tuple(found)


def mlp():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)).to(D)


def losses_of(outputs, targets, loss=F.cross_entropy):
    return torch.stack([loss(o, y) for o, y in zip(outputs, targets, strict=True)])


def rates_at(learner, k):
    if isinstance(learner, fastmeta.MetaSGD):
        return list(learner.alpha)
    rate = learner.lr[k] if isinstance(learner.lr, torch.Tensor) and learner.lr.ndim else learner.lr
    return [rate] * len(learner.adapted)


@sdpa_kernel(SDPBackend.MATH)  # the only attention that torch differentiates twice
def plain_losses(learner, sx, sy, qx, qy, loss=F.cross_entropy):
    """Of MAML, Meta-SGD and ANIL."""
    losses = []
    for x, y, query, target in zip(sx, sy, qx, qy, strict=True):
        if isinstance(learner, fastmeta.ANIL):
            x, query = learner.body(torch.cat([x, query])).split([len(x), len(query)])
        params, of_steps = dict(learner.model.named_parameters()), []
        for k in range(learner.steps):
            inner = loss(functional_call(learner.model, params, (x,)), y)
            changing = [params[path] for path in learner.adapted]
            grads = torch.autograd.grad(inner, changing, create_graph=not learner.first_order, **OPTIONS)
            steps = zip(learner.adapted, rates_at(learner, k), grads, strict=True)
            params |= {path: params[path] - rate * g for path, rate, g in steps}
            of_steps.append(loss(functional_call(learner.model, params, (query,)), target))
        if learner.loss_weights is None:
            losses.append(loss(functional_call(learner.model, params, (query,)), target))
        else:
            losses.append(sum(w * of_step for w, of_step in zip(learner.loss_weights, of_steps, strict=True)))
    return torch.stack(losses)


def same_gradients(ours, plain, inputs):
    """Values, and the gradients of the weighted sum of the tasks' losses."""
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)
    sums = ((losses * WEIGHTS[: len(plain)]).sum() for losses in (ours, plain))
    found = [torch.autograd.grad(total, inputs, retain_graph=True, **OPTIONS) for total in sums]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def same_as_the_plain_loop(learner, data, *more, loss=F.cross_entropy):
    """What `loss` gives and what the predictions do, with gradients to all that is trained and to `more`."""
    inputs = [*(p for p in learner.parameters() if p.requires_grad), *more]
    plain = plain_losses(learner, *data, loss)
    same_gradients(learner.loss(*data), plain, inputs)
    if learner.loss_weights is None:
        same_gradients(losses_of(learner(*data[:3]), data[3], loss), plain, inputs)


def check_slope(value, params, steps=(1e-6,), rtol=1e-6):
    """The gradient of `value()` along a random direction in `params`, against central differences; of several steps, which a kink
    may lie in, one must agree."""
    direction = [torch.randn_like(p) for p in params]
    slope = float(sum((g * d).sum() for g, d in zip(torch.autograd.grad(value(), params), direction, strict=True)))

    @torch.no_grad()
    def moved(h):
        torch._foreach_add_(params, direction, alpha=h)
        found = float(value())
        torch._foreach_sub_(params, direction, alpha=h)
        return found

    errors = [abs((moved(h) - moved(-h)) / (2 * h) - slope) for h in steps]
    assert min(errors) <= rtol * abs(slope) + 1e-8, (slope, errors)
