"""Problems of the ops of networks: random MLPs and convolutional networks, inner loops on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

import fastmeta

from . import loops
from .draw import Draw
from .problem import Problem, Slot
from .shapes import COUNTS, big, lead_of, own


class Net(NamedTuple):
    ranks: tuple[int, ...]  # of one task's parameters, in turn
    example: tuple[int, ...]  # the shape of one
    classes: int
    least: int = 0  # examples
    big: bool = True  # whether there may be many


OPS = ("forward", "loss", "grad", "hvp", "adapt", "meta_loss")


def _mlp(draw: Draw, p: Problem, lead: Sequence[int]) -> Net:
    """Parameters and activation."""
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
    return Net((2, 1), (widths[0],), widths[-1])


def _conv(draw: Draw, p: Problem, lead: Sequence[int]) -> Net:
    """Parameters and blocks, some of which no kernel takes."""
    channels, size = draw.size("channels", (1, 2, 3, 4, 9)), draw.size("size", (3, 4, 5, 6, 9))
    inputs, classes = draw.size("inputs", (1, 1, 2, 3)), draw.size("classes", (1, 2, 3, 5))
    params: list[Slot | None] = []
    blocks: list[fastmeta.ConvBlock] = []
    into, side = inputs, max(size, 3)
    example = (inputs, side, side)
    for _ in range(draw.size("blocks", (1, 1, 2, 3))):
        norms = ("batch", "batch", None, *(g for g in (1, 2, 3) if channels % g == 0))
        block = fastmeta.ConvBlock(
            draw.pick("stride", (1, 1, 2, 3)), draw.pick("padding", {0: 1, 1: 4, 2: 1, 3: 0.2}), draw.pick("norm", norms),
            draw.pick("eps", (0.1, 0.3)), draw.pick("relu", (True, True, False)), draw.pick("pool", {1: 3, 2: 3, 3: 0.2}),
        )  # fmt: skip
        after = (
            ((side + 2 * block.padding - 3) // block.stride + 1) // block.pool if side + 2 * block.padding > 2 else 0
        )
        if after < 1:
            block, after = block._replace(stride=1, padding=1, pool=1), side
        blocks.append(block)
        params.append(p.keep(draw.randn(*own(draw, lead), channels, into, 3, 3) / (9 * into) ** 0.5))
        for left_out in ("no_bias", "no_gamma", "no_beta"):
            gone = draw.odd(left_out, 0.2) or (left_out != "no_bias" and block.norm is None)
            params.append(None if gone else p.keep(draw.randn(*own(draw, lead), channels)))
        into, side = channels, after
    features = channels * side * side
    params.append(p.keep(draw.randn(*own(draw, lead), classes, features) / features**0.5))
    params.append(None if draw.odd("no_bias", 0.2) else p.keep(draw.randn(*own(draw, lead), classes)))
    p.arguments |= {"params": params, "blocks": blocks}
    least = 2 if any(block.norm == "batch" for block in blocks) else 0
    return Net(loops.convnet(blocks).ranks, example, classes, least, False)


def _examples(draw: Draw, p: Problem, net: Net, x: str, y: str, lead: Sequence[int]) -> None:
    n = max(big(draw, draw.size("examples", COUNTS), 33, 65) if net.big else draw.size("examples", COUNTS), net.least)
    shared = p.tensors[0].ndim == net.ranks[0]
    of_inputs = lead if shared else own(draw, lead)  # the weights or the inputs say how many tasks there are
    p.arguments[x] = p.keep(draw.randn(*of_inputs, n, *net.example))
    shape = [*own(draw, lead), n]
    if p.arguments["loss"] == "mse":
        p.arguments[y] = p.keep(draw.randn(*shape, net.classes))
        return
    targets = draw.labels(net.classes, *shape)
    if draw.odd("ignored", 0.3):
        targets = torch.where(draw.labels(draw.pick("ignored", (1, 2, 4)), *shape) == 0, -100, targets)
    p.arguments[y] = p.label(y, targets)


def _rates(draw: Draw, p: Problem, net: Net, steps: int) -> Any:
    size = 0.1 if p.kinks else 1.0

    def rate(*shape: int) -> Slot:
        return p.keep(draw.randn(*shape) * 0.3 * size)

    kind = draw.pick(
        "lr", {"number": 3, "0-dim": 2, "steps": 2, "numbers": 1, "0-dims": 1, "each step": 1, "elements": 2, "all": 1}
    )
    if kind in ("number", "0-dim", "steps"):
        return 0.1 * size if kind == "number" else rate() if kind == "0-dim" else rate(steps)
    rates: list[Any] = []
    for i, slot in enumerate(p.arguments["params"]):
        if slot is None:
            rates.append(None)
            continue
        core = _core(p, net, i)
        shapes = {"0-dims": (), "each step": (steps,), "elements": core, "all": (steps, *core)}
        rates.append(0.1 * size * (i + 1) if kind == "numbers" else rate(*shapes[kind]))
    return rates


def _core(p: Problem, net: Net, i: int) -> torch.Size:
    """The shape of one task's parameter."""
    shape = p.tensors[p.arguments["params"][i].key].shape
    return shape[len(shape) - net.ranks[i % len(net.ranks)] :]


def _problem(family: str, op: str) -> Callable[[Draw], Problem]:
    name = f"{family}_{op}"

    def make(draw: Draw) -> Problem:
        p, lead = Problem(name, getattr(fastmeta, name), loops.formula(name), {}, []), lead_of(draw)
        net = (_mlp if family == "mlp" else _conv)(draw, p, lead)
        p.kinks = family == "conv"
        if op == "forward":
            n = max(draw.size("examples", COUNTS), net.least)
            p.arguments["inputs"] = p.keep(draw.randn(*own(draw, lead), n, *net.example))
            return p
        p.arguments["loss"] = draw.pick("loss", ("cross_entropy", "mse"))
        if op == "hvp":
            p.arguments["curvature"] = draw.pick("curvature", ("hessian", "hessian", "ggn"))
            p.arguments["vectors"] = [
                None if s is None else p.keep(draw.randn(*own(draw, lead), *_core(p, net, i)))
                for i, s in enumerate(p.arguments["params"])
            ]
        if op in ("adapt", "meta_loss"):
            steps = draw.size("steps", (0, 1, 1, 2, 3))
            p.arguments |= {
                "lr": _rates(draw, p, net, steps),
                "steps": steps,
                "first_order": draw.odd("first_order", 0.2),
            }
        if op == "meta_loss":
            _examples(draw, p, net, "support_x", "support_y", lead)
            _examples(draw, p, net, "query_x", "query_y", lead)
        else:
            _examples(draw, p, net, "inputs", "targets", lead)
        return p

    return make


NETWORKS = {f"{family}_{op}": _problem(family, op) for family in ("mlp", "conv") for op in OPS}
