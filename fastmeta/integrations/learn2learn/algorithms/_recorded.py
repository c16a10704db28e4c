"""Clones that record."""

from __future__ import annotations

from typing import Any

from ...recording import RecordedModule, gives_up, took


class RecordedClone(RecordedModule):
    """It becomes a `plain` learner."""

    plain: type

    def took(self, loss: Any, first_order: bool | None) -> bool:
        own = self.__dict__
        return took(self, loss, own["first_order"] if first_order is None else first_order)

    def compute(self, why: str) -> Any:
        own, plain = self.__dict__, self.plain
        trace = own.pop("_trace")
        gives_up(trace, why)
        module, rates = trace.module(), trace.rates
        options = {name: own[name] for name in own if name != "training"}
        own.clear()
        options["lrs" if isinstance(rates, list) else "lr"] = rates
        object.__setattr__(self, "__class__", plain)
        plain.__init__(self, module, **options)  # type: ignore[misc]
        return self
