"""Clones that record."""

from __future__ import annotations

import functools
from typing import Any

from ...recording import RecordedModule, gives_up, refuses, took, trace_of


def clone_of(learner: Any, plain: Any, rates: Any, **options: Any) -> Any:
    """A clone of a learner of class `plain`, here or in learn2learn itself, that records; None: it computes at once."""
    trace = trace_of(learner.module, rates) if type(learner) is plain else None
    return None if trace is None else _kind(plain).of(trace, **options)


def clone_of_maml(learner: Any, plain: type, *given: bool | None) -> Any:
    """`given`: first_order, allow_unused and allow_nograd of the clone; None: the learner's."""
    if refuses(learner.module):
        return None
    names = ("first_order", "allow_unused", "allow_nograd")
    given = (*given, *[None] * (3 - len(given)))
    options = {name: getattr(learner, name) if x is None else x for name, x in zip(names, given, strict=True)}
    return clone_of(learner, plain, learner.lr, lr=learner.lr, **options)


def clone_of_meta_sgd(learner: Any, plain: type) -> Any:
    if refuses(learner.module):
        return None
    return clone_of(learner, plain, list(learner.lrs), first_order=learner.first_order)


@functools.cache
def _kind(plain: Any) -> Any:
    return type(plain.__name__, (RecordedClone, plain), {"plain": plain})


class RecordedClone(RecordedModule):
    """It becomes a `plain` learner."""

    plain: Any

    def adapt(self, loss: Any, first_order: bool | None = None, *options: Any, **named: Any) -> None:
        own = self.__dict__
        if not took(self, loss, own.get("first_order", False) if first_order is None else first_order):
            self.adapt(loss, first_order, *options, **named)  # the plain learner's

    def compute(self, why: str) -> Any:
        own, plain = self.__dict__, self.plain
        trace = own.pop("_trace")
        gives_up(trace, why)
        module, rates = trace.module(), trace.rates
        options = {name: own[name] for name in own if name != "training"}
        own.clear()
        if isinstance(rates, list):
            options["lrs"] = rates
        object.__setattr__(self, "__class__", plain)
        plain.__init__(self, module, **options)
        return self
