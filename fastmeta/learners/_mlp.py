"""Recognises the models that the fused mlp ops run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Identity: "identity",
}


@dataclass
class Mlp:
    layers: list[nn.Linear]
    activation: str
    flattens: bool

    def params(self) -> list[Tensor | None]:
        return [p for layer in self.layers for p in (layer.weight, layer.bias)]

    def spread(self, rates: Any) -> Any:
        """One rate for all as it is; a list without entries for absent biases in the structure of `params`."""
        if not isinstance(rates, list):
            return rates
        remaining = iter(rates)
        return [None if p is None else next(remaining) for p in self.params()]

    def takes(self, *inputs: Tensor) -> bool:
        """Whether the model maps these inputs `[T, n, ...]` example by example."""
        return self.flattens or all(x.ndim == 3 for x in inputs)

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(2) if self.flattens else x


def as_mlp(model: nn.Module) -> Mlp | None:
    """The MLP that `model` is, or None: Sequential(Flatten?, Linear, activation, Linear, ...), all parameters adapted."""
    if type(model) is nn.Linear:
        model = nn.Sequential(model)
    if type(model) is not nn.Sequential or has_hooks(model):
        return None
    modules: Sequence[nn.Module] = list(model)
    flattens = bool(modules) and type(modules[0]) is nn.Flatten
    if flattens:
        first = modules[0]
        if (first.start_dim, first.end_dim) != (1, -1):
            return None
        modules = modules[1:]
    layers, between = list(modules[::2]), list(modules[1::2])
    if len(layers) != len(between) + 1 or not all(type(m) is nn.Linear for m in layers):
        return None
    kinds = {ACTIVATIONS.get(type(m)) for m in between}
    if len(kinds) > 1 or None in kinds or any(isinstance(m, nn.GELU) and m.approximate != "none" for m in between):
        return None
    linears = [m for m in layers if isinstance(m, nn.Linear)]
    params = [p for layer in linears for p in layer.parameters()]
    if not all(p.requires_grad for p in params) or len(set(params)) < len(params):  # frozen, or shared by two layers
        return None
    return Mlp(linears, next(iter(kinds), None) or "relu", flattens)


def has_hooks(model: nn.Module) -> bool:
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or parametrize.is_parametrized(m)
        for m in model.modules()
    )
