"""Problems of the ops: random shapes, shared or per task, and static arguments."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import fastmeta

from . import formulas, loops
from .draw import Draw
from .problem import Problem, Slot

LEADS: dict[tuple[int, ...], float] = {(): 4, (1,): 1, (2,): 4, (3,): 2, (5,): 1, (2, 2): 1.5, (0,): 0.7}
COUNTS = (0, 1, 1, 2, 3, 3, 5, 7, 13)
WIDTHS = (0, 1, 2, 3, 5, 8, 16, 17, 33, 64, 65, 131)
METRICS = ("euclidean", "sqeuclidean", "cosine")
TRITON = ("auto", "ext", "ext", "reference", "triton")


def lead_of(draw: Draw) -> tuple[int, ...]:
    return tuple(min(n, draw.cap) for n in draw.pick("lead", LEADS))


def own(draw: Draw, lead: Sequence[int]) -> Sequence[int]:
    """The batch dimensions of one argument: all, or none, so that the tasks share it."""
    return () if lead and draw.odd("shared", 0.3) else lead


def big(draw: Draw, small: int, *options: int) -> int:
    """Over the blocks of a kernel, now and then."""
    return draw.size("big size", options) if draw.odd("big", 0.06) else small


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


def _network(draw: Draw, p: Problem, lead: Sequence[int]) -> list[int]:
    """Parameters and activation; returns the widths."""
    widths = [draw.size("width", (1, 2, 3, 5, 9, 17)) for _ in range(draw.size("layers", (1, 2, 2, 3)) + 1)]
    if draw.odd("big", 0.05):
        widths[draw.pick("big layer", range(len(widths)))] = draw.size("big size", (65, 130))
    if draw.odd("no_features", 0.03):
        widths[0] = 0
    params: list[Slot | None] = []
    for a, b in itertools.pairwise(widths):
        params.append(p.keep(draw.randn(*own(draw, lead), b, a) / max(a, 1) ** 0.5))
        params.append(None if draw.odd("no_bias", 0.15) else p.keep(draw.randn(*own(draw, lead), b)))
    p.arguments |= {"params": params, "activation": draw.pick("activation", tuple(loops.ACTIVATIONS))}
    return widths


def _examples(draw: Draw, p: Problem, x: str, y: str, lead: Sequence[int], widths: list[int]) -> None:
    n = big(draw, draw.size("examples", COUNTS), 33, 65)
    of_inputs = (
        lead if p.tensors[0].ndim == 2 else own(draw, lead)
    )  # the weights or the inputs say how many tasks there are
    p.arguments[x] = p.keep(draw.randn(*of_inputs, n, widths[0]))
    shape = [*own(draw, lead), n]
    if p.arguments["loss"] == "mse":
        p.arguments[y] = p.keep(draw.randn(*shape, widths[-1]))
        return
    targets = draw.labels(widths[-1], *shape)
    if draw.odd("ignored", 0.3):
        targets = torch.where(draw.labels(draw.pick("ignored", (1, 2, 4)), *shape) == 0, -100, targets)
    p.arguments[y] = p.label(y, targets)


def _rates(draw: Draw, p: Problem, steps: int) -> Any:
    def rate(*shape: int) -> Slot:
        return p.keep(draw.randn(*shape) * 0.3)

    kind = draw.pick(
        "lr", {"number": 3, "0-dim": 2, "steps": 2, "numbers": 1, "0-dims": 1, "each step": 1, "elements": 2, "all": 1}
    )
    if kind in ("number", "0-dim", "steps"):
        return 0.1 if kind == "number" else rate() if kind == "0-dim" else rate(steps)
    rates: list[Any] = []
    for i, slot in enumerate(p.arguments["params"]):
        if slot is None:
            rates.append(None)
            continue
        core = p.tensors[slot.key].shape[i % 2 - 2 :]
        shapes = {"0-dims": (), "each step": (steps,), "elements": core, "all": (steps, *core)}
        rates.append(0.1 * (i + 1) if kind == "numbers" else rate(*shapes[kind]))
    return rates


def _mlp(name: str) -> Callable[[Draw], Problem]:
    def make(draw: Draw) -> Problem:
        p, lead = Problem(name, getattr(fastmeta, name), getattr(loops, name), {}, []), lead_of(draw)
        widths = _network(draw, p, lead)
        if name == "mlp_forward":
            p.arguments["inputs"] = p.keep(draw.randn(*own(draw, lead), draw.size("examples", COUNTS), widths[0]))
            return p
        p.arguments["loss"] = draw.pick("loss", ("cross_entropy", "mse"))
        if name == "mlp_hvp":
            p.arguments["curvature"] = draw.pick("curvature", ("hessian", "hessian", "ggn"))
            p.arguments["vectors"] = [
                None if s is None else p.keep(draw.randn(*own(draw, lead), *p.tensors[s.key].shape[i % 2 - 2 :]))
                for i, s in enumerate(p.arguments["params"])
            ]
        if name in ("mlp_adapt", "mlp_meta_loss"):
            steps = draw.size("steps", (0, 1, 1, 2, 3))
            p.arguments |= {"lr": _rates(draw, p, steps), "steps": steps, "first_order": draw.odd("first_order", 0.2)}
        if name == "mlp_meta_loss":
            _examples(draw, p, "support_x", "support_y", lead, widths)
            _examples(draw, p, "query_x", "query_y", lead, widths)
        else:
            _examples(draw, p, "inputs", "targets", lead, widths)
        return p

    return make


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


MLP = ("mlp_forward", "mlp_loss", "mlp_grad", "mlp_hvp", "mlp_adapt", "mlp_meta_loss")
OPS: dict[str, Callable[[Draw], Problem]] = {
    "prototypes": prototypes,
    "proto_log_softmax": proto_log_softmax,
    "proto_loss": proto_loss,
    "matching_log_probs": matching_log_probs,
    "sgd_step": sgd_step,
    "hvp": hvp,
    "task_conv2d": task_conv2d,
    **{name: _mlp(name) for name in MLP},
}
