"""Problems of the ops of networks: random MLPs and convolutional networks, inner loops on them."""

import functools
import itertools

import fastmeta

from . import network_formulas
from .draw import COUNTS
from .subject import Problem

OPS = ("forward", "loss", "grad", "hvp", "adapt", "meta_loss")


def _mlp(draw, p, lead):
    """Parameters and activation; the shape of an example, and how many there must be."""
    widths = [draw.size("width", (1, 2, 3, 5, 9, 17)) for _ in range(draw.size("layers", (1, 2, 2, 3)) + 1)]
    if draw.odd("big", 0.05):
        widths[draw.pick("big layer", range(len(widths)))] = draw.size("big size", (65, 130))
    if draw.odd("no_features", 0.03):
        widths[0] = 0
    residual = widths[0] > 0 and draw.odd("residual_norm", 0.2)
    widths[-1] = widths[0] if residual else widths[-1]
    params = []
    for a, b in itertools.pairwise(widths):
        params.append(p.keep(draw.randn(*draw.own(lead), b, a) / max(a, 1) ** 0.5))
        params.append(None if draw.odd("no_bias", 0.15) else p.keep(draw.randn(*draw.own(lead), b)))
    if residual:
        params.append(p.keep(draw.randn(*draw.own(lead), widths[-1])))
        params.append(None if draw.odd("no_beta", 0.3) else p.keep(draw.randn(*draw.own(lead), widths[-1])))
    p.arguments |= {"params": params, "activation": draw.pick("activation", tuple(network_formulas.ACTIVATIONS))}
    p.arguments |= {"residual_norm": True} if residual else {}
    return widths[:1], widths[-1], 0


def _conv(draw, p, lead):
    """Parameters and blocks, some of which no kernel takes; now and then of an encoder, whose third block is then a shortcut."""
    encodes = p.name == "conv_forward" and draw.odd("encodes", 0.4)
    channels, side = draw.size("channels", (1, 2, 3, 4, 9)), max(draw.size("size", (3, 4, 5, 6, 9)), 3)
    into, classes = draw.size("inputs", (1, 1, 2, 3)), draw.size("classes", (1, 2, 3, 5))
    params, blocks, example = [], [], (into, side, side)
    norms = ("batch", "batch", None, *(g for g in (1, 2, 3) if channels % g == 0))
    count, reads = draw.size("blocks", (1, 1, 2, 3)), []  # `reads`: channels and side of what each block does
    shortcut = encodes and count > 2
    for i in range(count):
        block = fastmeta.ConvBlock(
            draw.pick("stride", (1, 1, 2, 3)), draw.pick("padding", {0: 1, 1: 4, 2: 1, 3: 0.2}), draw.pick("norm", norms),
            draw.pick("eps", (0.1, 0.3)), draw.pick("relu", (True, True, False)), draw.pick("pool", {1: 3, 2: 3, 3: 0.2}),
        )  # fmt: skip
        after = (max(side + 2 * block.padding - 3, -block.stride) // block.stride + 1) // block.pool
        if after < 1:
            block, after = block._replace(stride=1, padding=1, pool=1), side
        if shortcut and i == count - 1:
            into, side = reads[-2]
            block = block._replace(stride=blocks[-1].stride, padding=0, pool=1, slope=0.3, kernel=1, skip=2)
        elif shortcut and i >= count - 3:
            stride = 1 if i == count - 3 else block.stride
            block = block._replace(stride=stride, padding=1, pool=1, relu=i == count - 3)
        if shortcut and i >= count - 3:
            after = (side - 1) // block.stride + 1
        if not encodes and i == count - 1 and draw.odd("mean_of_pixels", 0.2):
            block, after = block._replace(pool="mean"), 1
        reads.append((into, side))
        blocks.append(block)
        k = block.kernel
        params.append(p.keep(draw.randn(*draw.own(lead), channels, into, k, k) / (k * k * into) ** 0.5))
        for left_out in ("no_bias", "no_gamma", "no_beta"):
            gone = draw.odd(left_out, 0.2) or (left_out != "no_bias" and block.norm is None)
            params.append(None if gone else p.keep(draw.randn(*draw.own(lead), channels)))
        into, side = channels, after
    least = 2 if any(block.norm == "batch" for block in blocks) else 0
    features = channels * side * side
    if encodes:
        p.arguments |= {"params": [*params, None, None], "blocks": blocks}
        return example, features, least
    params.append(p.keep(draw.randn(*draw.own(lead), classes, features) / features**0.5))
    params.append(None if draw.odd("no_bias", 0.2) else p.keep(draw.randn(*draw.own(lead), classes)))
    p.arguments |= {"params": params, "blocks": blocks}
    return example, classes, least


def _examples(draw, p, of_net, x, y, weights, lead, steps=()):
    """Inputs x and, unless their names are empty, targets y and now and then weights; all with `steps` in front."""
    example, classes, least = of_net
    n = max(draw.size("examples", COUNTS), least)
    n = n if p.kinks else draw.big(n, 33, 65)
    shared = p.tensors[0].ndim == (4 if p.kinks else 2)
    of_inputs = lead if shared and y else draw.own(lead)  # the weights or the inputs say how many tasks there are
    p.arguments[x] = p.keep(draw.randn(*steps, *of_inputs, n, *example))
    shape = [*steps, *draw.own(lead), n]
    if y and p.arguments["loss"] == "mse":
        p.arguments[y] = p.keep(draw.randn(*shape, classes))
    elif y:
        p.arguments[y] = p.label(y, draw.ignoring(draw.labels(classes, *shape), 0.3))
    if y and draw.odd("weights", 0.3):
        p.arguments[weights] = p.keep(draw.randn(*steps, *draw.own(lead), n))


def _rates(draw, p, cores, steps):
    size = 0.1 if p.kinks else 1.0
    kinds = {"number": 3, "0-dim": 2, "steps": 2, "numbers": 1, "0-dims": 1, "each step": 1, "elements": 2, "all": 1}
    kind = draw.pick("lr", kinds)

    def rate(*shape):
        return p.keep(draw.randn(*shape) * 0.3 * size)

    if kind in ("number", "0-dim", "steps"):
        return 0.1 * size if kind == "number" else rate(*((steps,) if kind == "steps" else ()))
    rates = []
    for i, core in enumerate(cores):
        shapes = {"0-dims": (), "each step": (steps,), "elements": core, "all": core and (steps, *core)}
        rates.append(None if core is None else 0.1 * size * (i + 1) if kind == "numbers" else rate(*shapes[kind]))
    return rates


def _cores(p):
    """The shapes of one task's parameters; None for those that are not there."""
    slots = p.arguments["params"]
    cores = [None if s is None else p.tensors[s.key].shape for s in slots]
    ranks = [(4, 1, 1, 1)[i % 4] if p.kinks and i < len(slots) - 2 else 2 - i % 2 for i in range(len(slots))]
    ranks[-2] = 1 if "residual_norm" in p.arguments else 2
    return [core and tuple(core[len(core) - rank :]) for core, rank in zip(cores, ranks, strict=True)]


def _called(function, lr, optimiser=None, **arguments):
    """Of a name of `network_formulas.OPTIMISERS`."""
    made = network_formulas.OPTIMISERS[optimiser][1](lr)
    return function(lr=made, **arguments) if optimiser is None else function(lr=None, optimiser=made, **arguments)


def _problem(family, op):
    name = f"{family}_{op}"

    def make(draw):
        p, lead = (
            Problem(name, getattr(fastmeta, name), network_formulas.formula(name), kinks=family == "conv"),
            draw.lead(),
        )
        of_net = (_conv if p.kinks else _mlp)(draw, p, lead)
        if op == "forward":
            _examples(draw, p, of_net, "inputs", "", "", lead)
            return p
        p.arguments["loss"], cores = draw.pick("loss", ("cross_entropy", "mse")), _cores(p)
        if op == "hvp":
            p.arguments["curvature"] = draw.pick("curvature", ("hessian", "hessian", "ggn"))
            vectors = [None if core is None else p.keep(draw.randn(*draw.own(lead), *core)) for core in cores]
            p.arguments["vectors"] = vectors
        batches = ()
        if op in ("adapt", "meta_loss"):
            p.function = functools.partial(_called, p.function)
            steps = draw.size("steps", (0, 1, 1, 2, 3))
            given = {"lr": _rates(draw, p, cores, steps), "steps": steps, "first_order": draw.odd("first_order", 0.2)}
            p.arguments |= given
            if draw.odd("optimiser", 0.3):
                p.arguments["optimiser"] = draw.pick("kind", ("nesterov", "adam"))
            if draw.odd("batch_per_step", 0.2):
                p.arguments["batch_per_step"], batches = True, (steps,)
        names = [("support_x", "support_y", "weights"), ("query_x", "query_y", "query_weights")]
        for of_batch in names if op == "meta_loss" else [("inputs", "targets", "weights")]:
            _examples(draw, p, of_net, *of_batch, lead, () if of_batch[0] == "query_x" else batches)
        return p

    return make


PROBLEMS = {f"{family}_{op}": _problem(family, op) for family in ("mlp", "conv") for op in OPS}
