"""Problems of the other ops: random shapes, shared or per task, and static arguments."""

import torch

import fastmeta

from . import network_formulas, op_formulas
from .draw import COUNTS
from .subject import Problem

WIDTHS = (0, 1, 2, 3, 5, 8, 16, 17, 33, 64, 65, 131)
METRICS = ("euclidean", "sqeuclidean", "cosine")
TRITON = ("auto", "ext", "ext", "reference", "triton")


def of_op(name, **more):
    return Problem(name, getattr(fastmeta, name), getattr(op_formulas, name), **{"backends": TRITON} | more)


def temperature(draw, p):
    kind = draw.pick("temperature", ("number", "0-dim", "[1]"))
    value = draw.randn().exp()
    return float(value) if kind == "number" else p.keep(value if kind == "0-dim" else value[None])


def near(draw, x, points):
    """x with rows that lie exactly on points."""
    if not (x.numel() and points.numel()) or not draw.odd("on_points", 0.15):
        return x
    rows = points.reshape(-1, points.shape[-1])
    on = rows[torch.arange(x[..., 0].numel()) % len(rows)].reshape(x.shape)
    return torch.where(torch.arange(x.shape[-2])[:, None] % 2 == 0, on, x)


def supports(draw):
    """Ways and examples, every way with one at least."""
    n = draw.size("ways", (1, 2, 3, 5, 20))
    return n, n * draw.size("shots", (1, 1, 2, 5)) + draw.size("extra", (0, 0, 1, 3))


def prototypes(draw):
    lead, (n, s), d = draw.lead(), supports(draw), draw.big(draw.size("D", WIDTHS), 777)
    p = of_op("prototypes")
    p.arguments = {"support": p.keep(draw.randn(*lead, s, d)), "labels": p.label("labels", draw.covering(n, *lead, s))}
    p.arguments["num_classes"] = n
    return p


def _distances(draw, p, name, count):
    """Query, what it is compared with, metric and temperature; the batch dimensions of the others, and [..., Q]."""
    lead, q, d = draw.lead(), draw.big(draw.size("Q", COUNTS), 67, 130), draw.big(draw.size("D", WIDTHS), 300)
    lead_q, lead_c = draw.own(lead), draw.own(lead)
    points = draw.randn(*lead_c, count, d)
    p.arguments |= {"query": p.keep(near(draw, draw.randn(*lead_q, q, d), points)), name: p.keep(points)}
    p.arguments |= {"metric": draw.pick("metric", METRICS), "temperature": temperature(draw, p)}
    return lead_c, (*max(lead_q, lead_c, key=len), q)


def proto_log_softmax(draw):
    p = of_op("proto_log_softmax")
    _distances(draw, p, "prototypes", draw.big(draw.size("N", (1, 2, 3, 5, 20)), 67))
    return p


def proto_loss(draw):
    p, n = of_op("proto_loss"), draw.big(draw.size("N", (1, 2, 3, 5, 20)), 67)
    _, shape = _distances(draw, p, "prototypes", n)
    kinds = torch.arange(n) % max(n // 2, 1) if draw.odd("classes", 0.2) else torch.arange(n)
    ignore = draw.pick("ignore", (-100, -100, -1, 0, n - 1, n))
    targets = draw.ignoring(draw.labels(int(kinds.max()) + 1, *shape), 0.4, ignore)
    p.arguments |= {"targets": p.label("targets", targets), "ignore_index": ignore}
    has_classes = "classes" in draw.seen
    p.arguments["classes"] = p.label("classes", kinds) if has_classes else None
    p.arguments["margin"] = draw.pick("margin", (0.0, 0.0, 0.4)) * (not has_classes)
    p.arguments["bias"] = p.keep(draw.randn(n)) if draw.odd("bias", 0.2) else None
    p.arguments["label_smoothing"] = 0.3 if draw.odd("label_smoothing", 0.2) else 0.0
    out = torch.where(draw.labels(2, *shape) == 0, -1, draw.labels(n, *shape))
    out = torch.where(kinds[out.clamp(min=0)] == targets, -1, out)
    p.arguments["exclude"] = p.label("exclude", out) if draw.odd("exclude", 0.3) else None
    if not has_classes and draw.odd("soft", 0.15):  # nothing is excluded: oddities give it a share
        p.arguments |= {"targets": p.keep(draw.randn(*shape, n)), "ignore_index": -100, "margin": 0.0, "exclude": None}
    p.arguments["reduction"] = draw.pick("reduction", ("mean", "sum", "none"))
    return p


def matching_log_probs(draw):
    p, (n, s) = of_op("matching_log_probs"), supports(draw)
    lead, _ = _distances(draw, p, "support", s)
    p.arguments |= {"labels": p.label("labels", draw.covering(n, *lead, s)), "num_classes": n}
    return p


def step_of(op, states=()):
    """A problem of an optimiser's step: lists of parameters, gradients and `states`, and rates."""

    def problem(draw):
        p, t, rates = of_op(op), draw.size("T", (0, 1, 2, 3)), {}
        trees = {name: {} for name in ("params", "grads", *states)}
        for i in range(draw.size("tensors", (1, 1, 2, 3, 9))):
            shape = [draw.size("side", (0, 1, 2, 3, 5, 17)) for _ in range(draw.size("rank", (0, 1, 2, 2, 3)))]
            shape = [draw.size("big size", (4099, 70001))] if draw.odd("big", 0.05) else shape
            lead = draw.own((t,))
            for name, tree in trees.items():
                x = draw.randn(
                    *(lead if name == "params" or (name != "grads" and draw.odd("shared_state", 0.3)) else (t,)), *shape
                )
                tree[f"p{i}"] = p.keep(x.square() if name == "squares" else x)
            rates[f"p{i}"] = draw.randn(*draw.pick("rate", ((), tuple(shape), (t, *shape))))
        each, one = draw.odd("rates", 0.5), draw.randn()

        def rate(x):
            return p.keep(x) if x.ndim or draw.odd("rate_tensor", 0.5) else float(x)

        trees["lr"] = {n: rate(x) for n, x in rates.items()} if each else rate(one)
        kind = draw.pick("tree", ("list", "tuple", "dict", "tensor"))
        if kind != "dict":
            made = {"list": list, "tuple": tuple, "tensor": lambda values: next(iter(values))}[kind]
            trees = {n: made(tree.values()) if isinstance(tree, dict) else tree for n, tree in trees.items()}
        p.arguments = trees | OF_STEPS[op](lambda name, x: p.keep(x) if draw.odd(name, 0.15) else float(x), draw)
        return p

    problem.__name__ = op
    return problem


OF_STEPS = {  # the other arguments of each, of number(name, value), which may be a tensor
    "sgd_step": lambda number, draw: {},
    "momentum_step": lambda number, draw: {
        "momentum": number("momentum", draw.randn()),
        "weight_decay": number("decay", draw.randn() * draw.size("decayed", (0, 1))),
        "nesterov": draw.odd("nesterov", 0.5),
    },
    "adam_step": lambda number, draw: {
        "step": draw.size("step", (1, 2, 30)),
        "betas": (number("beta1", draw.randn().sigmoid()), number("beta2", draw.randn().sigmoid())),
        "eps": draw.pick("eps", (1e-8, 0.01, 1.0)),
        "weight_decay": number("decay", draw.randn() * draw.size("decayed", (0, 1))),
    },
}


def hvp(draw):
    a, b = draw.size("rows", (1, 2, 5)), draw.size("columns", (1, 3, 4))
    p = Problem("hvp", fastmeta.hvp, network_formulas.hvp, backends=("auto", "reference"))
    params, vectors = ({"w": p.keep(draw.randn(a, b)), "v": p.keep(draw.randn(b))} for _ in range(2))
    functions = (
        lambda p: (p["w"] @ p["v"]).tanh().square().sum(),
        lambda p: p["w"].pow(3).sum().reshape(1) + p["v"].exp().sum(),
        lambda p: (p["w"] * p["w"].sum()).sum(),
    )
    p.arguments = {"fn": draw.pick("fn", functions), "params": params, "vectors": vectors}
    return p


def task_conv2d(draw):
    lead, n = draw.lead(), draw.size("n", (0, 1, 2, 3))
    i, o, k = draw.size("I", (1, 2, 3)), draw.size("O", (0, 1, 2, 5)), draw.size("k", (1, 2, 3))
    h, w = draw.size("H", (1, 3, 5, 8)) + k - 1, draw.size("W", (1, 2, 7)) + k - 1
    p = of_op("task_conv2d", backends=("auto", "reference", "triton"))
    p.arguments = {"x": p.keep(draw.randn(*draw.own(lead), n, i, h, w))}
    p.arguments["weight"] = p.keep(draw.randn(*draw.own(lead), o, i, k, k))
    p.arguments["bias"] = None if draw.odd("no_bias", 0.3) else p.keep(draw.randn(*draw.own(lead), o))
    p.arguments |= {"stride": draw.size("stride", (1, 1, 2)), "padding": draw.pick("padding", (0, 1, 2))}
    return p


STEPS = (step_of("sgd_step"), step_of("momentum_step", ["velocities"]), step_of("adam_step", ["means", "squares"]))
OPS = (prototypes, proto_log_softmax, proto_loss, matching_log_probs, *STEPS, hvp, task_conv2d)
PROBLEMS = {make.__name__: make for make in OPS}
