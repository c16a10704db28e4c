"""Ops beside what they stand for in plain PyTorch, for tests/test_nan.py."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import fastmeta
from fastmeta import reference
from fastmeta._dispatch import tensors_of

D = torch.float64
NAN = torch.nan
ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "identity": lambda z: z,
}
LABELS = torch.tensor([[-100, 0, 2, 1], [2, -100, 0, 1]])  # the first is ignored: so is the first place that is spoiled


@dataclass
class Case:
    """The op and what it stands for, functions of the tensors; `fixed` ones are not spoiled."""

    ours: Callable
    plain: Callable
    tensors: list[Tensor]
    fixed: list[Tensor] = field(default_factory=list)
    values_only: bool = False


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=D)


def mlp(params: list[Tensor], x: Tensor, activation: str) -> Tensor:
    w1, b1, w2, b2 = params
    return F.linear(ACTIVATIONS[activation](F.linear(x, w1, b1)), w2, b2)


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs, y) if y.is_floating_point() else F.cross_entropy(outputs, y)


def plain_mlp(activation: str) -> dict[str, Callable]:
    """The mlp ops, of one task."""

    def loss(p, x, y):
        return loss_of(mlp(p, x, activation), y)

    def grad(p, x, y, first_order=False):
        value = loss(p, x, y)
        return value, *torch.autograd.grad(value, p, create_graph=not first_order)

    def hvp(p, v, x, y):
        return torch.autograd.grad(grad(p, x, y)[1:], p, v, create_graph=True)

    def adapt(p, rates, x, y, first_order=False):
        for _ in range(2):
            p = [q - rate * g for q, rate, g in zip(p, rates, grad(p, x, y, first_order)[1:], strict=True)]
        return p

    def meta_loss(p, rates, x, y, query_x, query_y, first_order=False):
        return loss(adapt(p, rates, x, y, first_order), query_x, query_y)

    return {
        "mlp_forward": lambda p, x: mlp(p, x, activation),
        "mlp_loss": loss,
        "mlp_grad": grad,
        "mlp_hvp": hvp,
        "mlp_adapt": adapt,
        "mlp_meta_loss": meta_loss,
    }


ARGUMENTS = {"mlp_forward": "px", "mlp_loss": "pxy", "mlp_grad": "pxy", "mlp_hvp": "pvxy", "mlp_adapt": "prxy"}
ARGUMENTS["mlp_meta_loss"] = "prxyXY"


def mlp_case(op: str, activation: str, loss: str, widths=(5, 6), **more) -> Case:
    """p: params; v: vectors; r: rates; x, y, X, Y: support and query. Flat, but for labels; rates come last."""
    inputs, hidden = widths
    params = [randn(2, hidden, inputs), randn(2, hidden), randn(2, 3, hidden), randn(2, 3)]
    y, query_y = (LABELS, LABELS.flip(1)) if loss == "cross_entropy" else (randn(2, 4, 3), randn(2, 4, 3))
    pool = {"p": params, "v": [torch.randn_like(p) for p in params], "r": [torch.rand_like(p[0]) for p in params]}
    pool |= {"x": randn(2, 4, inputs), "X": randn(2, 4, inputs), "y": y, "Y": query_y}
    names = ARGUMENTS[op]
    flat = [t for n in names if n != "r" for t in tensors_of(pool[n]) if t.is_floating_point()]
    plain = plain_mlp(activation)[op]

    def arguments(tensors):
        rates, others = tensors[len(flat) :], iter(tensors)
        for n in names:
            if n == "r":
                yield list(rates)
            elif isinstance(pool[n], list):
                yield [next(others) for _ in pool[n]]
            else:
                yield next(others) if pool[n].is_floating_point() else pool[n]

    def of_tasks(*tensors):
        found = []
        for t in range(2):
            one = [
                a if n == "r" else [q[t].requires_grad_() for q in a] if n in "pv" else a[t]
                for n, a in zip(names, arguments(tensors), strict=True)
            ]
            found.append(tensors_of(plain(*one, **more)))
        return tuple(map(torch.stack, zip(*found, strict=True)))

    options = {"activation": activation} | ({"loss": loss} if op != "mlp_forward" else {})
    options |= {"steps": 2} if "r" in names else {}
    return Case(
        lambda *t: tensors_of(getattr(fastmeta, op)(*arguments(t), **options, **more)),
        of_tasks,
        flat,
        pool["r"] if "r" in names else [],
        values_only=op == "mlp_hvp",  # its gradients are not the kernel's
    )


def prototypes_case() -> Case:
    labels = LABELS.clamp(min=0)

    def plain(support):
        of_tasks = zip(support, labels, strict=True)
        return torch.stack([torch.stack([x[y == n].mean(0) for n in range(3)]) for x, y in of_tasks])

    return Case(lambda s: fastmeta.prototypes(s, labels, 3), plain, [randn(2, 4, 5)])


def sgd_step_case() -> Case:
    return Case(
        lambda p, g, lr: fastmeta.sgd_step(p, g, lr),
        lambda p, g, lr: p - lr * g,
        [randn(2, 9), randn(2, 9)],
        [randn(9)],
    )


def distance_case(op: str, metric: str, queries: int, ways: int) -> Case:
    """A zero vector on both sides, where "cosine" has gradient 0."""
    query, prototypes, temperature = randn(2, queries, 6), randn(2, ways, 6), torch.tensor(0.7, dtype=D)
    query[0, -1] = prototypes[0, -1] = 0
    if op == "proto_log_softmax":
        ours = lambda q, c, t: fastmeta.proto_log_softmax(q, c, metric=metric, temperature=t)  # noqa: E731
        return Case(ours, lambda *t: reference.proto_log_softmax(*t, metric), [query, prototypes], [temperature])
    if op == "matching_log_probs":
        labels = torch.arange(ways).remainder(3).expand(2, ways)
        return Case(
            lambda q, c, t: fastmeta.matching_log_probs(q, c, labels, 3, metric=metric, temperature=t),
            lambda q, c, t: reference.matching_log_probs(q, c, labels, t, 3, metric),
            [query, prototypes],
            [temperature],
        )
    targets = torch.arange(queries).remainder(ways).repeat(2, 1)
    targets[0, 0] = -100
    return Case(
        lambda q, c, t: fastmeta.proto_loss(q, c, targets, metric=metric, temperature=t),
        lambda q, c, t: reference.proto_loss(q, c, targets, t, metric, -100, "mean"),
        [query, prototypes],
        [temperature],
    )
