"""Problems of the learners: each with a random network, episode and settings, its model perhaps changed after construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta

from . import compared, learned, models
from .draw import Draw
from .learned import How
from .problem import Problem

N_FEATURES = 3
CURVED: Callable[[Tensor, Tensor], Tensor] = lambda z, y: F.cross_entropy(z * 1.1, y) + z.square().mean()  # noqa: E731


class Call(nn.Module):
    """The learner as a module that torch.func.functional_call can give other parameters; loss or predictions."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, episode: dict[str, Tensor]) -> Tensor:
        return self.learner.loss(**episode) if "query_y" in episode else self.learner(**episode)


def _gradient_based(draw: Draw, name: str, ways: int, how: How, kind: str) -> nn.Module:
    """MAML and those that are made like it."""
    net = models.network(draw, N_FEATURES, ways, kind)
    if name in ("MAML", "MetaSGD", "ANIL", "ProtoMAML"):
        how.first_order = draw.odd("first_order", 0.15)
    if name in ("MAML", "ANIL", "ProtoMAML"):
        how.lr = draw.pick("lr", (0.3, 0.3, torch.tensor(0.3), nn.Parameter(torch.tensor(0.3))))
        if draw.odd("rates", 0.15):
            how.lr = nn.Parameter(torch.linspace(0.1, 0.4, how.steps))
    if name != "ProtoMAML":
        how.loss = draw.pick("loss", {"cross_entropy": 4, "mse": 2, CURVED: 1})
    options: dict[str, Any] = {"loss": how.loss}
    if draw.odd("chunk", 0.2) and name != "ANIL":
        options["task_chunk"] = draw.pick("chunk", (1, 2))
    if name == "ANIL":
        body = models.network(draw, N_FEATURES, 4, draw.pick("body", ("mlp", "batch norm", "linear")), 1)
        return fastmeta.ANIL(
            body, models.network(draw, 4, ways, kind), how.lr, how.steps, first_order=how.first_order, **options
        )
    if name == "ProtoMAML":
        how.more["ways"], net = ways, models.network(draw, N_FEATURES, 4, kind)
        del options["loss"]
        return fastmeta.ProtoMAML(net, ways, how.lr, how.steps, first_order=how.first_order, **options)
    if draw.odd("adapt", 0.15) and len(net) > 1:
        last = f"{len(net) - 1}"
        options["adapt"], how.kept = [last], {n for n, _ in net.named_parameters() if not n.startswith(last)}
    if name == "Reptile":
        how.more["optimiser"] = options["optimiser"] = draw.pick("optimiser", ("sgd", "adam"))
        return fastmeta.Reptile(net, how.lr, how.steps, **options)
    if name == "IMAML":
        how.more["strength"] = options["strength"] = 4.0
        return fastmeta.IMAML(net, how.lr, how.steps, cg_steps=200, **options)
    if how.steps and draw.odd("loss_weights", 0.1):
        how.weights = options["loss_weights"] = [1.0 + k for k in range(how.steps)]
    cls = fastmeta.MAML if name == "MAML" else fastmeta.MetaSGD
    return cls(net, how.lr, how.steps, first_order=how.first_order, **options)


def _comparing(draw: Draw, name: str, ways: int, how: How, kind: str) -> nn.Module:
    encoder = models.network(draw, N_FEATURES, 4, kind)
    temperature = draw.pick(
        "temperature", (1.0, 0.3, nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor([0.7])))
    )
    metric = draw.pick("metric", ("euclidean", "sqeuclidean", "cosine"))
    how.more |= {"ways": ways, "metric": metric, "temperature": temperature}
    options = {
        "metric": metric,
        "temperature": temperature,
        "num_classes": ways if draw.odd("ways_given", 0.5) else None,
    }
    if name == "MatchingNet" and draw.odd("context", 0.3):
        options["context"] = fastmeta.FullContext(4, draw.pick("context steps", (1, 3)))
    return getattr(fastmeta, name)(encoder, **options)


def _leo(draw: Draw, name: str, ways: int, how: How, kind: str) -> nn.Module:
    how.more |= {"ways": ways, "finetune_steps": draw.pick("finetune", (0, 1, 2))}
    return fastmeta.LEO(
        N_FEATURES, draw.size("latents", (1, 2, 3)), 0.3, how.steps, finetune_lr=0.1, num_classes=ways,
        finetune_steps=how.more["finetune_steps"],
    ).eval()  # fmt: skip


LEARNERS: dict[str, tuple[Callable[..., nn.Module], Callable[..., Tensor], int]] = {
    "MAML": (_gradient_based, learned.maml, 3),
    "MetaSGD": (_gradient_based, learned.maml, 3),
    "ANIL": (_gradient_based, learned.anil, 2),
    "ProtoMAML": (_gradient_based, learned.proto_maml, 2),
    "Reptile": (_gradient_based, learned.reptile, 1),
    "IMAML": (_gradient_based, learned.imaml, 1),
    "LEO": (_leo, learned.leo, 2),
    "ProtoNet": (_comparing, compared.proto_net, 3),
    "MatchingNet": (_comparing, compared.matching_net, 2),
}


def _change(draw: Draw, name: str, learner: nn.Module, how: How, kind: str, after: bool) -> Any:
    """A change of the model; returns what has to be undone, if anything."""
    attribute = "encoder" if name in ("ProtoNet", "MatchingNet", "ProtoMAML") else "model"
    names = [*(models.SAME_PARAMETERS if name == "MetaSGD" else models.CHANGES), *(("other", "lr") if after else ())]
    change = draw.pick("change", names)
    if change == "frozen" and (after or name in ("ProtoMAML", "LEO") or how.kept):
        change = "hook"  # frozen later, a parameter is still adapted; no formula for the rest
    if change == "global hook" and getattr(learner, "context", None) is not None:
        change = "hook"  # the formula of FullContext calls no modules
    net = getattr(learner, attribute)
    draw.note(f"{'after' if after else 'before'}: {change}")
    if change == "other":
        old = net[-1]
        other = models.network(draw, N_FEATURES if name != "ANIL" else 4, old.out_features, kind, 3).to(
            old.weight.dtype
        )
        if [(n, p.shape) for n, p in other.named_parameters()] == [(n, p.shape) for n, p in net.named_parameters()]:
            setattr(learner, attribute, other)
    elif change == "lr":
        if isinstance(how.lr, float) and name != "MetaSGD" and hasattr(learner, "lr"):
            learner.lr = how.lr = 0.05
    else:
        undo = models.CHANGES[change](draw, net)
        how.frozen |= {n for n, p in net.named_parameters() if not p.requires_grad}
        return undo
    return None


def _episode(draw: Draw, p: Problem, name: str, how: How, kind: str, ways: int, dtype: torch.dtype) -> None:
    covers = name in ("ProtoNet", "MatchingNet", "ProtoMAML", "LEO")
    t = draw.size("T", (0, 1, 2, 3) if name not in ("LEO", "ProtoMAML", "ANIL") else (1, 2, 3))
    s, q = (
        ways * draw.size("shots", (1, 2)) + draw.size("extra", (0, 1)),
        draw.size("Q", (2, 2, 5) if "norm" in kind else (1, 2, 5)),
    )
    shape = (1, 6, 6) if kind == "conv" else (N_FEATURES,)
    p.arguments |= {"support_x": p.keep(draw.randn(t, s, *shape))}
    predicts = t > 0 and how.weights is None and draw.odd("predicts", 0.2)
    if how.loss == "mse":
        p.arguments["support_y"] = p.keep(draw.randn(t, s, ways))
        p.arguments |= {"query_x": p.keep(draw.randn(t, q, *shape)), "query_y": p.keep(draw.randn(t, q, ways))}
    else:
        labels = {"support_y": draw.covering(ways, t, s), "query_y": draw.labels(ways, t, q)}
        for key, y in labels.items():
            if how.loss == "cross_entropy" and (key == "query_y" or not covers) and draw.odd("ignored", 0.2):
                y = torch.where(draw.labels(3, *y.shape) == 0, -100, y)
            p.arguments[key] = p.label(key, y)
        p.arguments["query_x"] = p.keep(draw.randn(t, q, *shape))
    if predicts:
        del p.arguments["query_y"]


def learner(name: str) -> Callable[[Draw], Problem]:
    build, formula, max_order = LEARNERS[name]

    def make(draw: Draw) -> Problem:
        kind = draw.pick(
            "network", {"linear": 3, "mlp": 3, "layer norm": 1} if name in ("ANIL", "LEO", "IMAML") else models.KINDS
        )
        ways = draw.size("ways", (1, 2, 3)) if kind != "batch norm" else 3
        how = How(draw.size("steps", (1, 2, 3) if name == "Reptile" else (0, 1, 2, 3)))
        dtype = torch.float32 if draw.odd("float32", 0.3) else torch.float64
        if name == "IMAML":
            how.lr, how.steps = 0.05, draw.pick("imaml steps", (1, 5, 20))
        made = build(draw, name, ways, how, kind)
        undo = None
        changes, after = name != "LEO" and draw.odd("change", 0.45), draw.odd("after", 0.8)
        if after:
            made = made.to(dtype)
        if changes:
            undo = _change(draw, name, made, how, kind, after)
        made = made.to(dtype)
        if isinstance(how.lr, Tensor):  # as a parameter it is among the values
            how.lr = how.lr.detach().double()
        return _problem(draw, name, made, how, kind, ways, dtype, undo)

    def _problem(
        draw: Draw, name: str, made: nn.Module, how: How, kind: str, ways: int, dtype: Any, undo: Any
    ) -> Problem:
        functional, call = draw.odd("functional", 0.3) and not how.frozen, Call(made)

        def function(values: dict[str, Tensor], **episode: Tensor) -> Tensor:
            if not functional:
                return call(episode)
            return functional_call(call, {f"learner.{n}": p for n, p in values.items()}, (episode,))

        def truth(values: dict[str, Tensor], **episode: Tensor) -> Tensor:
            order = ("support_x", "support_y", "query_x", "query_y")
            return formula(how, made, values, {n: episode[n] for n in order if n in episode})

        p = Problem(
            name,
            function,
            truth,
            {},
            [],
            backends=("auto", "auto", "ext", "reference"),
            widens=False,
            differences=name == "Reptile",
        )
        p.dtype, p.ways, p.undo = dtype, ways, undo
        p.arguments["values"] = {
            n: p.keep(x.detach().double() if functional else x) for n, x in made.named_parameters()
        }
        _episode(draw, p, name, how, kind, ways, dtype)
        p.checks_labels = isinstance(how.loss, str)
        p.max_order = min(max_order, 1 if kind in models.SMOOTH_TWICE else 3)
        if "after: backward pre-hook" in draw.notes or "before: backward pre-hook" in draw.notes:
            p.max_order = 0
        draw.note(f"{kind}, {how.steps} steps, {how.loss if isinstance(how.loss, str) else 'a function'}")
        return p

    return make
