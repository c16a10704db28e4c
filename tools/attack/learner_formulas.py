"""The learners as their papers define them, (sx, sy, qx) -> outputs and (sx, sy, qx, qy) -> loss, mostly of a task; see op_formulas.py.

`values`: the learner's parameters by name. The networks are the user's own modules, called as they are.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from .network_formulas import gradient, outputs_loss, path
from .op_formulas import matching_log_probs, mean_loss, proto_log_softmax, prototypes
from .subject import Refused


@dataclass
class How:
    """What the learner was told."""

    steps: int = 1
    lr: Any = 0.1  # a number or tensor; the learner's own parameter where it has one
    loss: Any = "cross_entropy"
    first_order: bool = False
    weights: Any = None
    kept: set[str] = field(default_factory=set)  # trained, but not adapted
    more: dict[str, Any] = field(default_factory=dict)


def each(one):
    """Of an episode, one task after the other."""

    def of_tasks(how, learner, values, *episode):
        found = [one(how, learner, values, *task) for task in zip(*episode, strict=True)]
        return torch.stack(found) if found else torch.zeros(0)

    return of_tasks


def within(values, prefix):
    return {n[len(prefix) + 1 :]: v for n, v in values.items() if n.startswith(f"{prefix}.")}


def scored(how, z, qy):
    return outputs_loss(z, qy[0], how.loss) if qy else z


def rate(how, values, i, k):
    lr = values.get(f"alpha.{i}", values.get("lr", how.lr))
    return lr[k] if isinstance(lr, Tensor) and lr.ndim and f"alpha.{i}" not in values else lr


def parted(how, params):
    """Those that are adapted, and those that stay."""
    return ({n: p for n, p in params.items() if (n in how.kept) == stays} for stays in (False, True))


def inner_loop(how, model, values, params, sx, sy, qx, *qy):
    """MAML (Finn et al. 2017; weights of the steps' losses: Antoniou et al. 2019); MetaSGD's rates are in `values`."""
    theta, stay = parted(how, params)

    def outputs(t, x):
        return functional_call(model, stay | dict(zip(theta, t, strict=True)), (x,))

    def support(t, _):
        return outputs_loss(outputs(t, sx), sy, how.loss)

    steps = path([*theta.values()], support, lambda i, k: rate(how, values, i, k), how.steps, how.first_order)
    if how.weights is None or not qy:
        return scored(how, outputs(steps[-1], qx), qy)
    return torch.stack([w * scored(how, outputs(t, qx), qy) for w, t in zip(how.weights, steps[1:], strict=True)]).sum()


@each
def maml(how, learner, values, *task):
    return inner_loop(how, learner.model, values, within(values, "model"), *task)


@each
def anil(how, learner, values, sx, sy, qx, *qy):
    """Raghu et al. 2020."""
    features = functional_call(learner.body, within(values, "body"), (torch.cat([sx, qx]),))
    parts = features[: len(sx)], sy, features[len(sx) :], *qy
    return inner_loop(how, learner.model, values, within(values, "model"), *parts)


@each
def proto_maml(how, learner, values, sx, sy, qx, *qy):
    """Triantafillou et al. 2020."""
    encoder = within(values, "encoder")

    def features(t, x):
        return functional_call(learner.encoder, dict(zip(encoder, t, strict=True)), (x,)).flatten(1)

    def outputs(t, x):
        return features(t[:-2], x) @ t[-2].T + t[-1]

    c = prototypes(features(encoder.values(), sx), sy, how.more["ways"])
    start = [
        *(p.view_as(p) for p in encoder.values()),
        2 * c,
        -c.square().sum(1),
    ]  # a step does not see whose the head is
    steps = path(
        start, lambda t, _: outputs_loss(outputs(t, sx), sy, how.loss), lambda i, k: rate(how, values, i, k), how.steps,
        how.first_order,
    )  # fmt: skip
    return scored(how, outputs(steps[-1], qx), qy)


@each
def reptile(how, learner, values, sx, sy, qx, *qy):
    """Nichol et al. 2018: the loss at phi, its gradient theta - phi, and 0 to what stays."""
    theta, stay = parted(how, within(values, "model"))
    phi, squares = [p.detach() for p in theta.values()], [0.0 * p.detach() for p in theta.values()]

    def outputs(t, x):
        params = {n: p.detach() for n, p in stay.items()} | dict(zip(theta, t, strict=True))
        return functional_call(learner.model, params, (x,))

    for k in range(how.steps):
        grads = [g.detach() for g in gradient(lambda t: outputs_loss(outputs(t, sx), sy, how.loss), phi)]
        squares = [0.999 * s + 0.001 * g * g for s, g in zip(squares, grads, strict=True)]
        if how.more["optimiser"] == "adam":
            grads = [g / ((s / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8) for s, g in zip(squares, grads, strict=True)]
        phi = [p - how.lr * g for p, g in zip(phi, grads, strict=True)]
    pull = sum(((p.detach() - q) * (p - p.detach())).sum() for p, q in zip(theta.values(), phi, strict=True))
    out = scored(how, outputs(phi, qx), qy).detach()
    return out + pull if qy else out


@each
def imaml(how, learner, values, sx, sy, qx, *qy):
    """Rajeswaran et al. 2019: the gradient of the optimum, (H + strength) dphi = strength dtheta - d(slope), solved exactly."""
    (theta, stay), strength = parted(how, within(values, "model")), how.more["strength"]

    def outputs(flat, x):
        parts = flat.split([p.numel() for p in theta.values()])
        params = {n: part.reshape(p.shape) for (n, p), part in zip(theta.items(), parts, strict=True)}
        return functional_call(learner.model, stay | params, (x,))

    def slope(phi):
        return gradient(lambda p: outputs_loss(outputs(p[0], sx), sy, how.loss), [phi])[0]

    start = torch.cat([p.flatten() for p in theta.values()])
    phi = start.detach()
    for _ in range(how.steps):
        phi = phi - how.lr * (slope(phi).detach() + strength * (phi - start.detach()))
    at = phi.detach().requires_grad_()
    curved = [gradient(lambda p, i=i: slope(p[0])[i], [at])[0].detach() for i in range(len(phi))]
    matrix = torch.stack(curved) + strength * torch.eye(len(phi), dtype=phi.dtype)
    if not matrix.isfinite().all() or torch.linalg.eigvalsh(matrix).min() < strength / 100:
        raise Refused("iMAML defines no gradient where the objective is not convex")
    change = slope(phi) - strength * start  # of the slope of the whole objective at phi
    return scored(how, outputs(phi - torch.linalg.solve(matrix, change - change.detach()), qx), qy)


def comparing(of_features):
    """Of an episode, whose features are those of one batch: log-probabilities, or the loss of each task."""

    def of_tasks(how, learner, values, sx, sy, qx, *qy):
        both = torch.cat([sx, qx], 1)
        features = functional_call(learner.encoder, within(values, "encoder"), (both.flatten(0, 1),)).flatten(1)
        features = features.unflatten(0, both.shape[:2])
        temperature = values.get("temperature", how.more["temperature"])
        support, query = features[:, : sx.shape[1]], features[:, sx.shape[1] :]
        log_p = of_features(how, support, sy, query, how.more["metric"], temperature)
        if not qy:
            return log_p
        return torch.stack([mean_loss(*task) for task in zip(log_p, *qy, strict=True)]) if len(sx) else torch.zeros(0)

    return of_tasks


@comparing
def proto_net(how, support, y, query, *settings):
    """Snell et al. 2017."""
    return proto_log_softmax(query, prototypes(support, y, how.more["ways"]), *settings)


@comparing
def matching_net(how, support, y, query, *settings):
    """Vinyals et al. 2016, without full context."""
    return matching_log_probs(query, support, y, how.more["ways"], *settings)


@comparing
def mahalanobis_net(how, support, y, query, beta, temperature):
    """Bateni et al. 2020, by inverses."""
    found = [query.new_zeros(0, query.shape[1], how.more["ways"])]
    for x, labels, q in zip(support, y, query, strict=True):
        logits = []
        for k in range(how.more["ways"]):
            own = x[labels == k]
            n, apart = len(own), q - own.mean(0)
            shrunk = n / (n + 1) * covariance(own) + covariance(x) / (n + 1)
            precision = torch.linalg.inv(shrunk + beta * torch.eye(x.shape[1], dtype=x.dtype))
            logits.append(-((apart @ precision) * apart).sum(1) / temperature)
        found.append(torch.stack(logits, 1).log_softmax(1).unsqueeze(0))
    return torch.cat(found)


def covariance(x):
    apart = x - x.mean(0)
    return apart.T @ apart / max(len(x) - 1, 1)
