"""A function of fastmeta, the formula for it, and the arguments of both."""

import re
from collections.abc import Callable
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
    function: Callable
    formula: Callable  # of the same arguments
    arguments: dict[str, Any] = field(default_factory=dict)  # with slots
    tensors: list[Tensor] = field(default_factory=list)  # float64; parameters of a learner are taken as they are
    labels: dict[str, Tensor] = field(default_factory=dict)
    max_order: int = 3
    backends: tuple[str, ...] = ("auto", "ext", "reference")
    dtype: torch.dtype | None = None  # of a learner's parameters
    differences: bool = False  # gradients are differences of parameters, with their rounding
    own_loss: bool = False  # the user's, which may take any labels and refuse any arguments
    kinks: bool = (
        False  # rounding decides what relu and max-pool do where numbers are equal, or run away: values stay usual
    )
    ways: int = 0

    def keep(self, x):
        """A slot for a tensor that can be differentiated."""
        self.tensors.append(x)
        return Slot(len(self.tensors) - 1)

    def label(self, name, y):
        self.labels[name] = y
        return Slot(name)

    def run(self, fn, tensors, labels):
        """The outputs of the function or a formula, flat."""
        return outputs(fn(**fill(self.arguments, tensors, labels)))


class Finding(Exception):
    """What must not be; `kind` is its class."""

    def __init__(self, kind, detail):
        super().__init__(kind)
        self.kind, self.detail = kind, detail


class Refused(Exception):
    """A loud error that the documentation allows."""


def fill(tree, tensors, labels):
    """The arguments with tensors in their slots."""
    if isinstance(tree, Slot):
        return labels[tree.key] if isinstance(tree.key, str) else tensors[tree.key]
    if isinstance(tree, dict):
        return {key: fill(item, tensors, labels) for key, item in tree.items()}
    if hasattr(tree, "_fields"):  # a ConvBlock
        return tree
    return type(tree)(fill(item, tensors, labels) for item in tree) if isinstance(tree, list | tuple) else tree


def outputs(tree):
    return [x for x in _pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def says_what(name, error):
    """Whether an error reads `<op>: <what must hold>, got <what came>`."""
    kinds = TypeError | ValueError | RuntimeError | FileNotFoundError
    return isinstance(error, kinds) and re.match(rf"(?s)({name}): .+, got .+", str(error)) is not None


def first_line(error):
    """Without the numbers of the case."""
    line = re.sub(r"(?<!\w)-?\d[\d.e+-]*", "#", (str(error).splitlines() or [""])[0][:160])
    return f"{type(error).__name__}: {line}"


def describe(x):
    return f"{list(x.shape)}" + ("*" if x.requires_grad else "")


def exact(x):
    """The same values in float64, plain in memory."""
    plain = x.detach().as_subclass(Tensor).resolve_conj().resolve_neg()
    return plain.to(torch.float64).clone(memory_format=torch.contiguous_format)
