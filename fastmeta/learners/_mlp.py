"""Recognises the models that the fused mlp ops run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Identity: "identity",
}


@dataclass
class FusedModel:
    params: list[Tensor | None]  # as the ops take them

    def spread(self, rates: Any) -> Any:
        """One rate for all as it is; a list without entries for absent biases in the structure of `params`."""
        if not isinstance(rates, list):
            return rates
        remaining = iter(rates)
        return [None if p is None else next(remaining) for p in self.params]


@dataclass
class Mlp(FusedModel):
    activation: str
    flattens: bool

    def takes(self, *inputs: Tensor) -> bool:
        """Whether the model maps these inputs `[T, n, ...]` example by example."""
        return self.flattens or all(x.ndim == 3 for x in inputs)

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(2) if self.flattens else x


def as_mlp(model: nn.Module, adapted: int) -> Mlp | None:
    """The MLP that `model` is, or None: Sequential(Flatten?, Linear, activation, Linear, ...), `_seen.is_plain`, all its
    parameters, `adapted` of them, adapted and no two the same."""
    layers: Sequence[nn.Module] = list(model) if type(model) is nn.Sequential else [model]
    flattens = bool(layers) and type(layers[0]) is nn.Flatten
    if flattens:
        first: Any = layers[0]
        if (first.start_dim, first.end_dim) != (1, -1):
            return None
        layers = layers[1:]
    linears, between = list(layers[::2]), list(layers[1::2])
    if len(linears) != len(between) + 1 or not all(type(m) is nn.Linear for m in linears):
        return None
    kinds = {ACTIVATIONS.get(type(m)) for m in between}
    if len(kinds) > 1 or None in kinds or any(type(m) is nn.GELU and m.approximate != "none" for m in between):
        return None
    params = [p for m in linears for p in parameters_of(m)]
    here = [p is not None for p in params]
    if adapted != sum(here) or not all(here[::2]):  # fewer: frozen, or shared by two layers
        return None
    return Mlp(params, next(iter(kinds), None) or "relu", flattens)


def parameters_of(layer: nn.Module) -> list[Tensor | None]:
    """Its weight and its bias, None where there is none; neither where they stand in another order than a kernel takes them in."""
    ours = layer._parameters
    right = [*ours] in (["weight", "bias"], ["weight"])
    return [ours.get(name) if right else None for name in ("weight", "bias")]
