"""Problems of the ops: random shapes, shared or per task, and static arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import fastmeta

from . import formulas, loops
from .draw import Draw
from .networks import NETWORKS
from .problem import Problem
from .shapes import COUNTS, big, lead_of, own

WIDTHS = (0, 1, 2, 3, 5, 8, 16, 17, 33, 64, 65, 131)
METRICS = ("euclidean", "sqeuclidean", "cosine")
TRITON = ("auto", "ext", "ext", "reference", "triton")


def temperature(draw: Draw, p: Problem) -> Any:
    kind = draw.pick("temperature", ("number", "0-dim", "[1]"))
    value = draw.randn().exp()
    return float(value) if kind == "number" else p.keep(value if kind == "0-dim" else value[None])


def near(draw: Draw, x: Tensor, points: Tensor) -> Tensor:
    """x with rows that lie exactly on points."""
    if not (x.numel() and points.numel()) or not draw.odd("on_points", 0.15):
        return x
    rows = points.reshape(-1, points.shape[-1])
    on = rows[torch.arange(x[..., 0].numel()) % len(rows)].reshape(x.shape)
    return torch.where(torch.arange(x.shape[-2])[:, None] % 2 == 0, on, x)


def prototypes(draw: Draw) -> Problem:
    lead, n = lead_of(draw), draw.size("ways", (1, 2, 3, 5, 20))
    s, d = (
        n * draw.size("shots", (1, 1, 2, 5)) + draw.size("extra", (0, 0, 1, 3)),
        big(draw, draw.size("D", WIDTHS), 777),
    )
    p = Problem("prototypes", fastmeta.prototypes, formulas.prototypes, {"num_classes": n}, [], backends=TRITON)
    p.arguments |= {"support": p.keep(draw.randn(*lead, s, d)), "labels": p.label("labels", draw.covering(n, *lead, s))}
    return p


def _distances(draw: Draw, p: Problem, name: str, count: int) -> Sequence[int]:
    """Query, what it is compared with, metric and temperature; returns the batch dimensions of all and of the others."""
    lead, q, d = lead_of(draw), big(draw, draw.size("Q", COUNTS), 67, 130), big(draw, draw.size("D", WIDTHS), 300)
    lead_q, lead_c = own(draw, lead), own(draw, lead)
    points = draw.randn(*lead_c, count, d)
    p.arguments |= {"query": p.keep(near(draw, draw.randn(*lead_q, q, d), points)), name: p.keep(points)}
    p.arguments |= {"metric": draw.pick("metric", METRICS), "temperature": temperature(draw, p)}
    return [len(lead_c), *max(lead_q, lead_c, key=len), q]


def proto_log_softmax(draw: Draw) -> Problem:
    p = Problem(
        "proto_log_softmax", fastmeta.proto_log_softmax, formulas.proto_log_softmax, {}, [], backends=TRITON
    )  # fmt: skip
    _distances(draw, p, "prototypes", big(draw, draw.size("N", (1, 2, 3, 5, 20)), 67))
    return p


def proto_loss(draw: Draw) -> Problem:
    p = Problem("proto_loss", fastmeta.proto_loss, formulas.proto_loss, {}, [], backends=TRITON)
    n = big(draw, draw.size("N", (1, 2, 3, 5, 20)), 67)
    _, *shape = _distances(draw, p, "prototypes", n)
    y, ignore = draw.labels(n, *shape), draw.pick("ignore", (-100, -100, -1, 0, n - 1, n))
    if draw.odd("ignored", 0.4):
        y = torch.where(draw.labels(draw.pick("ignored", (1, 2, 5)), *shape) == 0, ignore, y)
    p.arguments |= {"targets": p.label("targets", y), "ignore_index": ignore}
    p.arguments["reduction"] = draw.pick("reduction", ("mean", "sum", "none"))
    return p


def matching_log_probs(draw: Draw) -> Problem:
    n = draw.size("N", (1, 2, 3, 5, 20))
    s = n * draw.size("shots", (1, 1, 2, 5)) + draw.size("extra", (0, 0, 1, 3))
    p = Problem("matching_log_probs", fastmeta.matching_log_probs, formulas.matching_log_probs, {}, [], backends=TRITON)
    rank, *shape = _distances(draw, p, "support", s)
    p.arguments |= {"labels": p.label("labels", draw.covering(n, *shape[:rank], s)), "num_classes": n}
    return p


def sgd_step(draw: Draw) -> Problem:
    p = Problem("sgd_step", fastmeta.sgd_step, formulas.sgd_step, {}, [], backends=TRITON)
    t, count = draw.size("T", (0, 1, 2, 3)), draw.size("tensors", (1, 1, 2, 3, 9))
    per_tensor = draw.odd("rates", 0.5)
    names, params, grads, rates = [], [], [], []
    for i in range(count):
        shape = [draw.size("side", (0, 1, 2, 3, 5, 17)) for _ in range(draw.size("rank", (0, 1, 2, 2, 3)))]
        if draw.odd("big", 0.05):
            shape = [draw.size("big size", (4099, 70001))]
        names.append(f"p{i}")
        params.append(p.keep(draw.randn(*own(draw, (t,)), *shape)))
        grads.append(p.keep(draw.randn(t, *shape)))
        rate = draw.randn(*draw.pick("rate", ((), tuple(shape), (t, *shape))))
        rates.append(p.keep(rate) if rate.ndim or draw.odd("rate_tensor", 0.5) else float(rate))
    rate = draw.randn()
    one = p.keep(rate) if draw.odd("rate_tensor", 0.5) else float(rate)
    kind = draw.pick("tree", ("list", "tuple", "dict", "tensor"))
    if kind == "dict":
        trees: list[Any] = [dict(zip(names, x, strict=True)) for x in (params, grads, rates)]
    else:
        trees = [x[0] if kind == "tensor" else tuple(x) if kind == "tuple" else x for x in (params, grads, rates)]
    p.arguments = {"params": trees[0], "grads": trees[1], "lr": trees[2] if per_tensor else one}
    return p


def hvp(draw: Draw) -> Problem:
    a, b = draw.size("rows", (1, 2, 5)), draw.size("columns", (1, 3, 4))
    p = Problem("hvp", fastmeta.hvp, loops.hvp, {}, [], backends=("auto", "reference"), widens=False)
    trees = [{"w": p.keep(draw.randn(a, b)), "v": p.keep(draw.randn(b))} for _ in range(2)]
    functions = (
        lambda p: (p["w"] @ p["v"]).tanh().square().sum(),
        lambda p: p["w"].pow(3).sum().reshape(1) + p["v"].exp().sum(),
        lambda p: (p["w"] * p["w"].sum()).sum(),
    )
    p.arguments = {"fn": draw.pick("fn", functions), "params": trees[0], "vectors": trees[1]}
    return p


def task_conv2d(draw: Draw) -> Problem:
    lead, n = lead_of(draw), draw.size("n", (0, 1, 2, 3))
    i, o, k = draw.size("I", (1, 2, 3)), draw.size("O", (0, 1, 2, 5)), draw.size("k", (1, 2, 3))
    h, w = draw.size("H", (1, 3, 5, 8)) + k - 1, draw.size("W", (1, 2, 7)) + k - 1
    p = Problem(
        "task_conv2d", fastmeta.task_conv2d, formulas.task_conv2d, {}, [], backends=("auto", "reference", "triton")
    )  # fmt: skip
    p.arguments = {"x": p.keep(draw.randn(*own(draw, lead), n, i, h, w))}
    p.arguments |= {"weight": p.keep(draw.randn(*own(draw, lead), o, i, k, k))}
    p.arguments["bias"] = None if draw.odd("no_bias", 0.3) else p.keep(draw.randn(*own(draw, lead), o))
    p.arguments |= {"stride": draw.size("stride", (1, 1, 2)), "padding": draw.pick("padding", (0, 1, 2))}
    return p


OPS: dict[str, Callable[[Draw], Problem]] = {
    "prototypes": prototypes,
    "proto_log_softmax": proto_log_softmax,
    "proto_loss": proto_loss,
    "matching_log_probs": matching_log_probs,
    "sgd_step": sgd_step,
    "hvp": hvp,
    "task_conv2d": task_conv2d,
    **NETWORKS,
}
