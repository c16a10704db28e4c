"""Networks, and how a program changes them between the construction of a learner and its call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .draw import Draw

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.Identity)
SMOOTH_TWICE = ("batch norm", "layer norm", "conv")  # of torch's own norms the third derivatives are wrong


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def network(draw: Draw, inputs: int, outputs: int, kind: str, seed: int = 0) -> nn.Sequential:
    """[n, inputs], or images [n, 1, 6, 6] for "conv", -> [n, outputs]; its weights from the case's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(draw.seed + seed)
        return nn.Sequential(*_layers(draw, inputs, outputs, kind))


def _layers(draw: Draw, inputs: int, outputs: int, kind: str) -> list[nn.Module]:
    activation, width, bias = (
        draw.pick("activation", ACTIVATIONS),
        draw.size("hidden", (1, 3, 4, 7)),
        not draw.odd("no_bias", 0.1),
    )
    if kind == "linear":
        return [nn.Linear(inputs, outputs, bias)]
    if kind == "conv":
        norm = draw.pick("norm", (nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3)))
        return [nn.Conv2d(1, 3, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, outputs)]
    front = [nn.Flatten()] if kind == "flattened" else []
    middle: list[nn.Module] = [nn.Linear(width, width), activation()] if draw.odd("deep", 0.5) else []
    if kind == "batch norm":
        middle = [nn.BatchNorm1d(width, track_running_stats=False)]
    if kind == "layer norm":
        middle = [nn.LayerNorm(width)]
    if kind == "residual":
        middle = [Residual(width)]
    if kind == "mixed":
        middle = [nn.Linear(width, width), nn.Softplus()]
    return [*front, nn.Linear(inputs, width, bias), activation(), *middle, nn.Linear(width, outputs, bias)]


KINDS = {
    "mlp": 5, "linear": 2, "flattened": 1, "batch norm": 1, "layer norm": 1, "residual": 1, "mixed": 1, "conv": 1.5
}  # fmt: skip


def linears(net: nn.Sequential) -> list[int]:
    return [i for i, m in enumerate(net) if type(m) is nn.Linear]


def head(draw: Draw, net: nn.Sequential) -> None:
    old = net[-1]
    net[-1] = nn.Linear(old.in_features, old.out_features, old.bias is not None).to(old.weight)


def wider(draw: Draw, net: nn.Sequential) -> None:
    """Another hidden width."""
    last, before = net[-1], linears(net)[:-1]
    if len(before) == 1 and not any(isinstance(m, nn.LayerNorm | nn.BatchNorm1d | Residual) for m in net):
        old = net[before[0]]
        net[before[0]] = nn.Linear(old.in_features, 5).to(old.weight)
        net[-1] = nn.Linear(5, last.out_features).to(last.weight)


def activation(draw: Draw, net: nn.Sequential) -> None:
    for i, m in enumerate(net):
        if type(m) in ACTIVATIONS:
            net[i] = nn.Softplus() if draw.odd("strange", 0.3) else draw.pick("other activation", ACTIVATIONS)()


def hook(draw: Draw, net: nn.Sequential) -> None:
    net[-1].register_forward_hook(lambda module, args, out: out * 1.5)


def pre_hook(draw: Draw, net: nn.Sequential) -> None:
    net[-1].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))


def whole_hook(draw: Draw, net: nn.Sequential) -> None:
    net.register_forward_hook(lambda module, args, out: out * 1.5)


def backward_pre_hook(draw: Draw, net: nn.Sequential) -> None:
    net[-1].register_full_backward_pre_hook(lambda module, grads: (grads[0] * 0.5,))


def global_hook(draw: Draw, net: nn.Sequential) -> Any:
    """Returns its handle: it must not outlive the case."""
    scale = lambda module, args, out: out * 1.5 if type(module) is nn.Linear else None  # noqa: E731
    return nn.modules.module.register_module_forward_hook(scale)


def patched(draw: Draw, net: nn.Sequential) -> None:
    layer = net[-1]
    layer.forward = lambda x: F.linear(x, layer.weight) * 2


def patched_whole(draw: Draw, net: nn.Sequential) -> None:
    net.forward = lambda x: nn.Sequential.forward(net, x) * 2


def tied(draw: Draw, net: nn.Sequential) -> None:
    same = [i for i in linears(net) if net[i].weight.shape == net[linears(net)[0]].weight.shape]
    for i in same[1:]:
        net[i].weight = net[same[0]].weight


def no_bias(draw: Draw, net: nn.Sequential) -> None:
    net[draw.pick("layer", linears(net))].bias = None


def parametrized(draw: Draw, net: nn.Sequential) -> None:
    parametrize.register_parametrization(net[-1], "weight", Half())


def frozen(draw: Draw, net: nn.Sequential) -> None:
    net[0 if len(net) == 1 else -1].weight.requires_grad_(False)


def slot(draw: Draw, net: nn.Sequential) -> None:
    """A weight put in under another object: what a loaded or converted model does."""
    net[-1].weight = nn.Parameter(net[-1].weight.detach() * 1.5)


CHANGES: dict[str, Callable[[Draw, nn.Sequential], Any]] = {
    "head": head, "wider": wider, "activation": activation, "hook": hook, "pre-hook": pre_hook, "whole hook": whole_hook,
    "backward pre-hook": backward_pre_hook, "global hook": global_hook, "patched": patched, "patched whole": patched_whole,
    "tied": tied, "no bias": no_bias, "parametrized": parametrized, "frozen": frozen, "another parameter": slot,
}  # fmt: skip
SAME_PARAMETERS = (
    "head",
    "activation",
    "hook",
    "pre-hook",
    "whole hook",
    "global hook",
    "patched",
    "patched whole",
    "another parameter",
)
