"""Whole meta-iterations whose inner steps are more than theta - lr g on one batch, in one op and as torch.func has them."""

from functools import partial

import torch
from plain import sgd

import fastmeta
from fastmeta.reference.adam_step import adam_update
from measure.inner_loops import SINUSOID, arguments, forward

STEPS = 5
RATE, BETAS = 0.01, (0.9, 0.99)


def adam(p, g, state, k, lr, betas):
    """Not torch.optim's formula as it stands, whose derivative is NaN where a unit of ReLU has no gradient."""
    found, *state = adam_update(p, g, *state, lr, k, *betas, 0.0, 1e-8)
    return found, state


FORMS = {  # the options of the op; the formula of a step and its options
    "weights": ({}, sgd, {}),
    "batch a step": ({"batch_per_step": True}, sgd, {}),
    "momentum": ({"optimiser": fastmeta.SGD(RATE, 0.9, 1e-4)}, sgd, {"momentum": 0.9, "weight_decay": 1e-4}),
    "Adam": ({"optimiser": fastmeta.Adam(RATE, BETAS)}, adam, {"betas": BETAS}),
}


def problem(form):
    """(arguments, ours, by torch.vmap of torch.func.grad): each a function of the arguments that gives the mean query loss."""
    options, formula, of_formula = FORMS[form]
    params, _, *data = arguments(SINUSOID)
    if form == "batch a step":
        data[:2] = [torch.randn(STEPS, *x.shape) for x in data[:2]]
    weights = torch.rand(*data[1].shape[:-1]).requires_grad_(form == "weights")
    return (params, *data, weights), partial(in_one_op, form, options), partial(by_vmap, form, formula, of_formula)


def in_one_op(form, options, params, support_x, support_y, query_x, query_y, weights):
    lr = None if "optimiser" in options else RATE
    options = options | ({"weights": weights} if form == "weights" else {})
    data = support_x, support_y, query_x, query_y
    return fastmeta.mlp_meta_loss(params, lr, *data, steps=STEPS, loss="mse", **options).mean()


def by_vmap(form, formula, options, params, support_x, support_y, query_x, query_y, weights):
    def loss(params, x, y, w):
        errors = (forward(params, x) - y).square().mean(-1)
        return (errors * w if form == "weights" else errors).mean()

    def of_task(support_x, support_y, query_x, query_y, weights):
        theta, support = params, (support_x, support_y, weights)
        states = [[torch.zeros_like(p)] * 2 for p in params]
        for k in range(STEPS):
            batch = [x[k] for x in support] if form == "batch a step" else support
            grads = torch.func.grad(loss)(theta, *batch)
            made = [
                formula(p, g, state, k + 1, lr=RATE, **options)
                for p, g, state in zip(theta, grads, states, strict=True)
            ]
            theta, states = [p for p, _ in made], [state for _, state in made]
        return loss(theta, query_x, query_y, torch.ones_like(query_y[..., 0]))

    axis = 1 if form == "batch a step" else 0
    return torch.vmap(of_task, (axis, axis, 0, 0, axis))(support_x, support_y, query_x, query_y, weights).mean()
