"""The learners as their papers define them, task by task in plain PyTorch; see formulas.py.

`values`: the learner's parameters by name. The networks are the user's own modules, called as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .formulas import prototypes
from .loops import gradient, outputs_loss
from .problem import Refused

Values = dict[str, Tensor]


@dataclass
class How:
    """What the learner was told."""

    steps: int = 1
    lr: Any = 0.1  # a number or tensor; the learner's own parameter where it has one
    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy"
    first_order: bool = False
    weights: Sequence[float] | None = None
    frozen: set[str] = field(default_factory=set)  # neither adapted nor trained
    kept: set[str] = field(default_factory=set)  # trained, but not adapted
    more: dict[str, Any] = field(default_factory=dict)


def within(values: Values, prefix: str) -> Values:
    return {n[len(prefix) + 1 :]: v for n, v in values.items() if n.startswith(f"{prefix}.")}


def loss_of(how: How, z: Tensor, y: Tensor) -> Tensor:
    return outputs_loss(z, y, how.loss) if isinstance(how.loss, str) else how.loss(z, y)


def rate(how: How, values: Values, place: int, k: int) -> Any:
    """Of the adapted parameter number `place` in step k."""
    if f"alpha.{place}" in values:
        return values[f"alpha.{place}"]
    lr = values.get("lr", how.lr)
    return (lr[k] if lr.ndim else lr) if isinstance(lr, Tensor) else lr


def slopes(fn: Callable[[Values], Tensor], theta: Values) -> Values:
    found = gradient(lambda p: fn(dict(zip(theta, p, strict=True))), list(theta.values())) if theta else []
    return dict(zip(theta, found, strict=True))


def descend(how: How, values: Values, theta: Values, fn: Callable[[Values], Tensor]) -> list[Values]:
    """theta before the first step and after each."""
    found = [theta]
    for k in range(how.steps):
        grads = slopes(fn, theta)
        grads = {n: g.detach() for n, g in grads.items()} if how.first_order else grads
        theta = {n: p - rate(how, values, i, k) * grads[n] for i, (n, p) in enumerate(theta.items())}
        found.append(theta)
    return found


def parted(how: How, params: Values) -> tuple[Values, Values]:
    """Those that are adapted, and those that stay."""
    stay = {n: p for n, p in params.items() if n in how.frozen | how.kept}
    return {n: p for n, p in params.items() if n not in stay}, stay


def inner_loop(how: How, model: nn.Module, values: Values, all_params: Values, task: Sequence[Tensor]) -> Tensor:
    """MAML on one task (sx, sy, qx) -> outputs, (sx, sy, qx, qy) -> loss (Finn et al. 2017; weights: Antoniou et al. 2019)."""
    sx, sy, qx, *qy = task
    theta, stay = parted(how, all_params)

    def outputs(theta: Values, x: Tensor) -> Tensor:
        return functional_call(model, {**stay, **theta}, (x,))

    path = descend(how, values, theta, lambda t: loss_of(how, outputs(t, sx), sy))
    if not qy:
        return outputs(path[-1], qx)
    if how.weights is None:
        return loss_of(how, outputs(path[-1], qx), qy[0])
    losses = [w * loss_of(how, outputs(t, qx), qy[0]) for w, t in zip(how.weights, path[1:], strict=True)]
    return torch.stack(losses).sum()


def tasks(one: Callable[..., Tensor], episode: dict[str, Tensor]) -> Tensor:
    found = [one(*task) for task in zip(*episode.values(), strict=True)]
    return torch.stack(found) if found else torch.zeros(0)


def maml(how: How, learner: nn.Module, values: Values, episode: dict[str, Tensor]) -> Tensor:
    """MetaSGD too: its rates are in `values`."""
    return tasks(lambda *t: inner_loop(how, learner.model, values, within(values, "model"), t), episode)


def anil(how: How, learner: nn.Module, values: Values, episode: dict[str, Tensor]) -> Tensor:
    """Raghu et al. 2020."""

    def one(sx: Tensor, sy: Tensor, qx: Tensor, *qy: Tensor) -> Tensor:
        features = functional_call(learner.body, within(values, "body"), (torch.cat([sx, qx]),))
        parts = (features[: len(sx)], sy, features[len(sx) :], *qy)
        return inner_loop(how, learner.model, values, within(values, "model"), parts)

    return tasks(one, episode)


def proto_maml(how: How, learner: nn.Module, values: Values, episode: dict[str, Tensor]) -> Tensor:
    """Triantafillou et al. 2020."""
    encoder = within(values, "encoder")

    def one(sx: Tensor, sy: Tensor, qx: Tensor, *qy: Tensor) -> Tensor:
        c = prototypes(functional_call(learner.encoder, encoder, (sx,)).flatten(1), sy, how.more["ways"])
        start = {n: p.view_as(p) for n, p in encoder.items()}  # a step does not see that the head came from them
        theta = {**start, "W of head": 2 * c, "b of head": -c.square().sum(1)}

        def outputs(t: Values, x: Tensor) -> Tensor:
            features = functional_call(learner.encoder, {n: t[n] for n in encoder}, (x,)).flatten(1)
            return features @ t["W of head"].T + t["b of head"]

        adapted = descend(how, values, theta, lambda t: loss_of(how, outputs(t, sx), sy))[-1]
        return loss_of(how, outputs(adapted, qx), qy[0]) if qy else outputs(adapted, qx)

    return tasks(one, episode)


def reptile(how: How, learner: nn.Module, values: Values, episode: dict[str, Tensor]) -> Tensor:
    """Nichol et al. 2018: the loss at phi, its gradient theta - phi, and 0 to what stays."""
    theta, stay = parted(how, within(values, "model"))
    stay = {n: p.detach() for n, p in stay.items()}

    def one(sx: Tensor, sy: Tensor, qx: Tensor, *qy: Tensor) -> Tensor:
        phi, squares = {n: p.detach() for n, p in theta.items()}, {n: 0.0 * p.detach() for n, p in theta.items()}
        for k in range(how.steps):
            grads = slopes(lambda t: loss_of(how, functional_call(learner.model, {**t, **stay}, (sx,)), sy), phi)
            for n, g in ((n, g.detach()) for n, g in grads.items()):
                squares[n] = 0.999 * squares[n] + 0.001 * g * g
                adam = g / ((squares[n] / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
                phi[n] = phi[n] - how.lr * (adam if how.more["optimiser"] == "adam" else g)
        out = functional_call(learner.model, {**phi, **stay}, (qx,)).detach()
        pull = sum(((p.detach() - phi[n]) * (p - p.detach())).sum() for n, p in theta.items())
        return loss_of(how, out, qy[0]).detach() + pull if qy else out

    return tasks(one, episode)


def imaml(how: How, learner: nn.Module, values: Values, episode: dict[str, Tensor]) -> Tensor:
    """Rajeswaran et al. 2019: the gradient of the optimum, (H + strength) dphi = strength dtheta - d(slope), solved exactly."""
    (theta, stay), strength = parted(how, within(values, "model")), how.more["strength"]
    shapes = {n: p.shape for n, p in theta.items()}

    def named(flat: Tensor) -> Values:
        parts = flat.split([s.numel() for s in shapes.values()])
        return {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)} | stay

    def one(sx: Tensor, sy: Tensor, qx: Tensor, *qy: Tensor) -> Tensor:
        start = torch.cat([p.flatten() for p in theta.values()])

        def slope(phi: Tensor) -> Tensor:
            return gradient(lambda p: loss_of(how, functional_call(learner.model, named(p[0]), (sx,)), sy), [phi])[0]

        phi = start.detach()
        for _ in range(how.steps):
            phi = phi - how.lr * (slope(phi).detach() + strength * (phi - start.detach()))
        at = phi.detach().requires_grad_()
        curved = [gradient(lambda p, i=i: slope(p[0])[i], [at])[0].detach() for i in range(len(phi))]
        matrix = torch.stack(curved) + strength * torch.eye(len(phi), dtype=phi.dtype)
        if not matrix.isfinite().all() or torch.linalg.eigvalsh(matrix).min() < strength / 100:
            raise Refused("iMAML defines no gradient where the objective is not convex")
        change = slope(phi) - strength * start  # of the slope of the whole objective at phi
        phi = phi - torch.linalg.solve(matrix, change - change.detach())
        out = functional_call(learner.model, named(phi), (qx,))
        return loss_of(how, out, qy[0]) if qy else out

    return tasks(one, episode)


def leo(how: How, learner: nn.Module, values: Values, episode: dict[str, Tensor]) -> Tensor:
    """Rusu et al. 2019 without noise, as the docstring of the learner puts it."""
    n, decoder = how.more["ways"], values["decoder.weight"]

    def deviation(raw: Tensor) -> Tensor:
        return F.softplus(raw) / math.log(2)

    def one(sx: Tensor, sy: Tensor, qx: Tensor, *qy: Tensor) -> Tensor:
        codes = sx @ values["encoder.weight"].T
        pairs = torch.cat([codes[:, None].expand(-1, len(sx), -1), codes[None].expand(len(sx), -1, -1)], -1)
        for layer in ("first", "second", "third"):
            pairs = (pairs if layer == "first" else pairs.relu()) @ values[f"relation.{layer}.weight"].T
        z, raw = prototypes(pairs.mean(1), sy, n).chunk(2, -1)
        start = z
        decoded = lambda z: (z @ decoder.T).chunk(2, -1)[0]  # noqa: E731
        for _ in range(how.steps):
            z = z - values["lr"] * gradient(lambda p: outputs_loss(sx @ decoded(p[0]).T, sy, "cross_entropy"), [z])[0]
        w = decoded(z)
        for _ in range(how.more["finetune_steps"]):
            grad = gradient(lambda p: outputs_loss(sx @ p[0].T, sy, "cross_entropy"), [w])[0]
            w = w - values["finetune_lr"] * grad
        if not qy:
            return qx @ w.T
        kl = (start.square() + deviation(raw).square() - 1) / 2 - deviation(raw).log()
        moved = (z.detach() - start).square().mean()
        columns = F.normalize(decoder, dim=0)
        correlated = (columns.T @ columns - torch.eye(columns.shape[1], dtype=columns.dtype)).square().mean()
        of_query = outputs_loss(qx @ w.T, qy[0], "cross_entropy")
        return of_query + 1e-3 * kl.mean() + 1e-9 * moved + 1e-3 * correlated

    return tasks(one, episode)
