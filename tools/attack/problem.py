"""A function of fastmeta, the formula for it, and the arguments of both."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree


@dataclass(frozen=True)
class Slot:
    """A place in the arguments for a tensor: the number of a differentiable one, or the name of labels."""

    key: int | str


@dataclass
class Problem:
    name: str
    function: Callable[..., Any]
    formula: Callable[..., Any]  # of the same arguments
    arguments: dict[str, Any]  # with slots
    tensors: list[Tensor]  # float64; parameters of a learner are taken as they are
    labels: dict[str, Tensor] = field(default_factory=dict)
    max_order: int = 3
    backends: tuple[str, ...] = ("auto", "ext", "reference")
    dtype: torch.dtype | None = None  # of a learner's parameters
    widens: bool = True  # float16 is computed in float32, as is everything under autocast
    differences: bool = False  # gradients are differences of parameters, with their rounding
    checks_labels: bool = True  # a user's own loss may take any
    kinks: bool = (
        False  # where numbers are equal, or run away, rounding decides what relu and max-pool do: values stay usual
    )
    ways: int = 0
    undo: Any = None  # a hook that must not outlive the case

    def keep(self, x: Tensor) -> Slot:
        """A slot for a tensor that can be differentiated."""
        self.tensors.append(x)
        return Slot(len(self.tensors) - 1)

    def label(self, name: str, y: Tensor) -> Slot:
        self.labels[name] = y
        return Slot(name)

    def run(self, fn: Callable[..., Any], tensors: Any, labels: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs of the function or a formula, flat."""
        return outputs(fn(**fill(self.arguments, tensors, labels)))


class Finding(Exception):
    """What must not be; `kind` is its class."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


class Refused(Exception):
    """A loud error that the documentation allows."""


def fill(tree: Any, tensors: Any, labels: Mapping[str, Tensor]) -> Any:
    """The arguments with tensors in their slots."""
    if isinstance(tree, Slot):
        return labels[tree.key] if isinstance(tree.key, str) else tensors[tree.key]
    if isinstance(tree, dict):
        return {key: fill(item, tensors, labels) for key, item in tree.items()}
    if hasattr(tree, "_fields"):  # a ConvBlock
        return tree
    return type(tree)(fill(item, tensors, labels) for item in tree) if isinstance(tree, list | tuple) else tree


def outputs(tree: Any) -> list[Tensor]:
    return [x for x in _pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def says_what(name: str, error: BaseException) -> bool:
    """Whether an error reads `<op>: <what must hold>, got <what came>`."""
    kinds = TypeError | ValueError | RuntimeError | FileNotFoundError
    return isinstance(error, kinds) and re.match(rf"(?s)({name}): .+, got .+", str(error)) is not None


def first_line(error: BaseException) -> str:
    """Without the numbers of the case."""
    line = (str(error).splitlines() or [""])[0][:160]
    line = re.sub(r"(?<!\w)-?\d[\d.e+-]*", "#", line)
    return f"{type(error).__name__}: {line}"


def describe(x: Tensor) -> str:
    return f"{list(x.shape)}" + ("*" if x.requires_grad else "")


def exact(x: Tensor) -> Tensor:
    """The same values in float64, plain in memory."""
    plain = x.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
    return plain.to(torch.float64).clone(memory_format=torch.contiguous_format)
