"""Learners against the plain loop of their papers: what the tests of the learners share."""

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastmeta

D = torch.float64


def episode(tasks=4, shots=6, queries=7):
    draw = lambda n: (torch.randn(tasks, n, 6, dtype=D), torch.randint(0, 3, (tasks, n)))  # noqa: E731
    return (*draw(shots), *draw(queries))


def rates_at(learner, k):
    if isinstance(learner, fastmeta.MetaSGD):
        return list(learner.alpha)
    rate = learner.lr[k] if isinstance(learner.lr, torch.Tensor) and learner.lr.ndim else learner.lr
    return [rate] * len(learner.adapted)


@sdpa_kernel(SDPBackend.MATH)  # the only attention that torch differentiates twice
def plain_losses(learner, sx, sy, qx, qy, loss=F.cross_entropy):
    """As a paper writes it: a loop over tasks, autograd through everything."""
    losses = []
    for task in range(len(sx)):
        params, of_steps = dict(learner.model.named_parameters()), []
        for k in range(learner.steps):
            inner = loss(functional_call(learner.model, params, (sx[task],)), sy[task])
            changing = [params[path] for path in learner.adapted]
            grads = torch.autograd.grad(
                inner, changing, create_graph=not learner.first_order, allow_unused=True, materialize_grads=True
            )
            steps = zip(learner.adapted, rates_at(learner, k), grads, strict=True)
            params |= {path: params[path] - rate * g for path, rate, g in steps}
            of_steps.append(loss(functional_call(learner.model, params, (qx[task],)), qy[task]))
        if learner.loss_weights is None:
            losses.append(loss(functional_call(learner.model, params, (qx[task],)), qy[task]))
        else:
            losses.append(sum(w * of_step for w, of_step in zip(learner.loss_weights, of_steps, strict=True)))
    return torch.stack(losses)


def same_gradients(ours, plain, inputs, weights):
    """Of the weighted sum of the losses of each task."""
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad((ours * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    truth = torch.autograd.grad((plain * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


WEIGHTS = torch.tensor([1.0, -0.5, 2.0, 0.0], dtype=D)
