"""How a learner runs its network: found when it is called, and kept as long as network and settings stay what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch

from ._batch_norm import refuse_running_statistics
from ._conv import ConvNet, as_convnet
from ._mlp import Mlp, as_mlp
from ._seen import Seen, is_plain, stands_in
from ._task import Task


@dataclass
class Plan:
    task: Task
    adapted: list[str]  # names of the model's parameters
    mlp: Mlp | None
    net: ConvNet | None
    seen: Seen | None  # None inside torch.compile, which looks again when it compiles
    settings: tuple[Any, ...]
    trained: dict[str, bool]  # which parameters are

    def holds(self, settings: tuple[Any, ...]) -> bool:
        seen = self.seen
        return seen is not None and all(map(is_, settings, self.settings)) and seen.same_parameters() and seen.holds()

    @property
    def classes(self) -> int | None:
        """How many the outputs have, where a kernel's network says so; None for another loss than cross-entropy too."""
        if self.task.loss != "cross_entropy" or (self.mlp is None and self.net is None):
            return None
        weights = [p for p in self.task.model.parameters() if p.ndim > 1]
        return weights[-1].shape[0]

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
) -> Plan:
    """`adapt`: see `adapted_names`. `before`: the last plan, from which an unchanged network takes what was learned of it.
    `known`: which parameters were trained then, for those in whose place a tensor stands now."""
    model, loss = task.model, task.loss
    refuse_running_statistics(learner, model)
    trained = {path: known.get(path, True) if stands_in(p) else p.requires_grad for path, p in model.named_parameters()}
    adapted = adapted_names(learner, trained, adapt, first=not known)
    whole = isinstance(loss, str) and len(adapted) == len(trained) and is_plain(model)
    mlp, net = (as_mlp(model, len(adapted)), as_convnet(model, len(adapted))) if whole else (None, None)
    seen = None if torch.compiler.is_compiling() else Seen(*task.children())
    old = before.seen if before is not None and before.task is task else None
    if seen is not None and old is not None and old.holds():
        seen.learned = old.learned
    return Plan(task, adapted, mlp, net, seen, settings, trained)


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
