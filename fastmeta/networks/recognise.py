"""Which network is this? Asked when a learner is called, and known as long as the model and the settings stay what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import nn

from .any_module import AnyModule
from .batch_norm import refuse_running_statistics
from .convnet import ConvNet, convnet_parts
from .layers import Graph, flat_layers
from .mlp import Mlp, mlp_parts
from .program import Program
from .users_model import Seen, Task, is_plain, stands_in
from .with_optimiser import WithOptimiser

# Each with what makes a model one: its layers, one after the other -> what the network has beyond AnyModule, or None.
KINDS: tuple[tuple[Any, Any], ...] = ((Mlp, mlp_parts), (ConvNet, convnet_parts))


@dataclass
class Plan:
    """How a learner runs its network."""

    network: AnyModule
    settings: tuple[Any, ...]
    trained: dict[str, bool]  # which of the model's parameters are

    @property
    def seen(self) -> Seen | None:
        return self.network.seen

    @property
    def adapted(self) -> list[str]:
        return self.network.adapted

    def holds(self, settings: tuple[Any, ...]) -> bool:
        seen = self.network.seen
        return seen is not None and all(map(is_, settings, self.settings)) and seen.same_parameters() and seen.holds()

    @property
    def lasts(self) -> bool:
        """Whether it may be kept: not with tensors that stand in for parameters during a call."""
        return self.seen is not None and not any(map(stands_in, self.seen.tensors))


def look(
    learner: str,
    task: Task,
    adapt: Sequence[str] | None,
    settings: tuple[Any, ...],
    before: Plan | None,
    known: dict[str, bool],
    *,
    steps: int,
    first_order: bool,
    task_chunk: int | None,
    optimises: bool = False,
) -> Plan:
    """`adapt`: see `adapted_names`. `before`: the last plan, from which an unchanged network takes what was learned of it.
    `known`: which parameters were trained then, for those in whose place a tensor stands now. `optimises`: the
    rates will be an optimiser."""
    model = task.model
    refuse_running_statistics(learner, model)
    trained = {path: known.get(path, True) if stands_in(p) else p.requires_grad for path, p in model.named_parameters()}
    adapted = adapted_names(learner, trained, adapt, first=not known)
    seen = None if torch.compiler.is_compiling() else Seen(*task.children())
    old = before.seen if before is not None and before.network.task is task else None
    if seen is not None and old is not None and old.holds():
        seen.learned = old.learned
    common = (learner, task, adapted, seen, steps, first_order, task_chunk)
    whole = isinstance(task.loss, str) and len(adapted) == len(trained)
    layers = layers_of(model, seen) if whole else None
    layers = layers or []
    ends = len(layers) > 1 and task.loss == "cross_entropy" and is_log_softmax(layers[-1])
    for kind, parts_of in KINDS if layers else ():
        parts = parts_of(layers[: len(layers) - ends])
        order = None if parts is None else order_of(parts[0], model)
        if order is not None:
            in_order = order == [*range(len(order))]
            native = kind(*common, *parts, order=None if in_order else tuple(order), log_softmax=ends)
            return Plan(WithOptimiser(*common, native) if optimises else native, settings, trained)
    return Plan((WithOptimiser if optimises else AnyModule)(*common), settings, trained)


def layers_of(model: nn.Module, seen: Seen | None) -> list[Any] | None:
    """The known layers that the model is, one after the other; `seen` notes what tells so. Without it, inside torch.compile, of a
    Sequential alone."""
    if seen is None:
        return flat_layers(model) if is_plain(model) else None
    program = Program(model)
    found = Graph(program).chain() if program.end is not None else None
    seen.reads = program.reads
    return found


def is_log_softmax(layer: nn.Module) -> bool:
    """Over the outputs of each example."""
    return type(layer) is nn.LogSoftmax and layer.dim in (1, -1)


def order_of(params: Sequence[Any], model: nn.Module) -> list[int] | None:
    """The place of each among the model's parameters; None: they are not these, each once."""
    ours, every = [p for p in params if p is not None], [*model.parameters()]
    if len(ours) != len(every):
        return None
    if all(a is b for a, b in zip(ours, every, strict=True)):
        return [*range(len(ours))]
    if torch.compiler.is_compiling():  # of a Sequential alone, which has them in order
        return None
    places = {id(p): i for i, p in enumerate(every)}
    found = [places.get(id(p), -1) for p in ours]
    return found if sorted(found) == [*range(len(ours))] else None


def adapted_names(learner: str, trained: dict[str, bool], adapt: Sequence[str] | None, first: bool) -> list[str]:
    """The trained parameters that `adapt` chooses, by their names or those of modules that hold them. None: all. Those that are
    named must be trained the `first` time; they may be frozen later."""
    if adapt is None:
        return [path for path, is_trained in trained.items() if is_trained]
    for name in adapt:
        if not any(_within(path, name) and (is_trained or not first) for path, is_trained in trained.items()):
            raise ValueError(
                f"{learner}: adapt must name parameters with requires_grad, or modules with some, got {name!r}"
            )
    return [path for path, is_trained in trained.items() if is_trained and any(_within(path, n) for n in adapt)]


def _within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")
