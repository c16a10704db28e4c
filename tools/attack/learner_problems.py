"""Problems of the learners: each with a random network, episode and settings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmeta

from . import learner_formulas
from .learner_formulas import How
from .subject import Problem

FEATURES = 3
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.Identity, nn.SiLU, nn.LeakyReLU)
KINDS = {"mlp": 5, "linear": 2, "flattened": 1, "batch norm": 1, "layer norm": 1, "mixed": 1, "conv": 1.5}
SMOOTH_TWICE = ("batch norm", "layer norm", "conv")  # of torch's own norms the third derivatives are wrong
CURVED = lambda z, y: F.cross_entropy(z * 1.1, y) + z.square().mean()  # noqa: E731


def network(draw, inputs, outputs, kind):
    """[n, inputs], or images [n, 1, 6, 6] for "conv", -> [n, outputs]; its weights from the case's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(draw.seed)
        return nn.Sequential(*_layers(draw, inputs, outputs, kind))


def _layers(draw, inputs, outputs, kind):
    activation, width = draw.pick("activation", ACTIVATIONS), draw.size("hidden", (1, 3, 4, 7))
    bias = not draw.odd("no_bias", 0.1)
    if kind == "linear":
        return [nn.Linear(inputs, outputs, bias)]
    if kind == "conv":
        norm = draw.pick("norm", (nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3)))
        return [nn.Conv2d(1, 3, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, outputs)]
    middle = {
        "batch norm": [nn.BatchNorm1d(width, track_running_stats=False)],
        "layer norm": [nn.LayerNorm(width)],
        "mixed": [nn.Linear(width, width), nn.Softplus()],
    }.get(kind, [nn.Linear(width, width), activation()] if draw.odd("deep", 0.5) else [])
    front = [nn.Flatten()] if kind == "flattened" else []
    return [*front, nn.Linear(inputs, width, bias), activation(), *middle, nn.Linear(width, outputs, bias)]


def _gradient_based(draw, name, ways, how, kind):
    """MAML and those that are made like it."""
    given = {}
    if name not in ("Reptile", "IMAML"):
        how.first_order = given["first_order"] = draw.odd("first_order", 0.15)
    if name in ("MAML", "ANIL", "ProtoMAML"):
        how.lr = draw.pick("lr", (0.3, 0.3, torch.tensor(0.3), nn.Parameter(torch.tensor(0.3))))
        how.lr = nn.Parameter(torch.linspace(0.1, 0.4, how.steps)) if draw.odd("rates", 0.15) else how.lr
    if name == "ProtoMAML":
        how.more["ways"] = ways
        return fastmeta.ProtoMAML(network(draw, FEATURES, 4, kind), ways, how.lr, how.steps, **given)
    how.loss = given["loss"] = draw.pick("loss", {"cross_entropy": 4, "mse": 2, CURVED: 1})
    if name == "ANIL":
        body = network(draw, FEATURES, 4, draw.pick("body", ("mlp", "batch norm", "linear")))
        return fastmeta.ANIL(body, network(draw, 4, ways, kind), how.lr, how.steps, **given)
    net = network(draw, FEATURES, ways, kind)
    if draw.odd("chunk", 0.2):
        given["task_chunk"] = draw.pick("chunk", (1, 2))
    if draw.odd("adapt", 0.15) and len(net) > 1:
        last = f"{len(net) - 1}"
        given["adapt"], how.kept = [last], {n for n, _ in net.named_parameters() if not n.startswith(last)}
    if name == "Reptile":
        how.more["optimiser"] = given["optimiser"] = draw.pick("optimiser", ("sgd", "adam"))
    elif name == "IMAML":
        how.more["strength"] = given["strength"] = 4.0
        given["cg_steps"] = 200
    elif how.steps and draw.odd("loss_weights", 0.1):
        how.weights = given["loss_weights"] = [1.0 + k for k in range(how.steps)]
    return getattr(fastmeta, name)(net, how.lr, how.steps, **given)


def _comparing(draw, name, ways, how, kind):
    learned_ones = (nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor([0.7])))
    settings = {"temperature": draw.pick("temperature", (1.0, 0.3, *learned_ones))}
    if name == "MahalanobisNet":
        settings["beta"] = how.more["metric"] = draw.pick("beta", (1.0, 0.1))
    else:
        settings["metric"] = draw.pick("metric", ("euclidean", "sqeuclidean", "cosine"))
    how.more |= settings | {"ways": ways}
    given = settings | {"num_classes": ways if draw.odd("ways_given", 0.5) else None}
    return getattr(fastmeta, name)(network(draw, FEATURES, 4, kind), **given)


LEARNERS = {  # what builds it, its formula, the greatest order
    "MAML": (_gradient_based, learner_formulas.maml, 3),
    "MetaSGD": (_gradient_based, learner_formulas.maml, 3),
    "ANIL": (_gradient_based, learner_formulas.anil, 2),
    "ProtoMAML": (_gradient_based, learner_formulas.proto_maml, 2),
    "Reptile": (_gradient_based, learner_formulas.reptile, 1),
    "IMAML": (_gradient_based, learner_formulas.imaml, 1),
    "ProtoNet": (_comparing, learner_formulas.proto_net, 3),
    "MatchingNet": (_comparing, learner_formulas.matching_net, 2),
    "MahalanobisNet": (_comparing, learner_formulas.mahalanobis_net, 2),
}

COMPARING = [name for name, (build, *_) in LEARNERS.items() if build is _comparing]


def _episode(draw, p, how, kind, ways):
    t = draw.size("T", (1, 2, 3) if p.name in ("ProtoMAML", "ANIL") else (0, 1, 2, 3))
    s = ways * draw.size("shots", (1, 2)) + draw.size("extra", (0, 1))
    q = draw.size("Q", (2, 2, 5) if "norm" in kind else (1, 2, 5))
    for part, n in (("support", s), ("query", q)):
        p.arguments[f"{part}_x"] = p.keep(draw.randn(t, n, *((1, 6, 6) if kind == "conv" else (FEATURES,))))
        key, covers = f"{part}_y", part == "support" and p.name in (*COMPARING, "ProtoMAML")
        if how.loss == "mse":
            p.arguments[key] = p.keep(draw.randn(t, n, ways))
            continue
        y = draw.covering(ways, t, n) if part == "support" else draw.labels(ways, t, n)
        p.arguments[key] = p.label(key, y if callable(how.loss) or covers else draw.ignoring(y, 0.2))
    if t and how.weights is None and draw.odd("predicts", 0.2):
        del p.arguments["query_y"]


def learner(name):
    build, formula, max_order = LEARNERS[name]

    def make(draw):
        kind = draw.pick("network", {"linear": 3, "mlp": 3, "layer norm": 1} if name in ("ANIL", "IMAML") else KINDS)
        ways = draw.size("ways", (1, 2, 3)) if kind != "batch norm" else 3
        how = How(draw.size("steps", (1, 2, 3) if name == "Reptile" else (0, 1, 2, 3)))
        dtype = torch.float32 if draw.odd("float32", 0.3) else torch.float64
        if name == "IMAML":
            how.lr, how.steps = 0.05, draw.pick("imaml steps", (1, 5, 20))
        made = build(draw, name, ways, how, kind).to(dtype)
        if isinstance(how.lr, Tensor):  # as a parameter it is among the values
            how.lr = how.lr.detach().double()

        def function(values, **episode):
            return made.loss(**episode) if "query_y" in episode else made(**episode)

        def truth(values, **episode):
            order = ("support_x", "support_y", "query_x", "query_y")
            return formula(how, made, values, *(episode[n] for n in order if n in episode))

        p = Problem(
            name, function, truth, differences=name == "Reptile", own_loss=callable(how.loss), ways=ways, dtype=dtype
        )
        p.arguments["values"] = {n: p.keep(x) for n, x in made.named_parameters()}
        _episode(draw, p, how, kind, ways)
        p.max_order = min(max_order, 1 if kind in SMOOTH_TWICE else 3)
        draw.note(f"{kind}, {how.steps} steps, {'a function' if p.own_loss else how.loss}")
        return p

    return make


PROBLEMS = {name: learner(name) for name in LEARNERS}
