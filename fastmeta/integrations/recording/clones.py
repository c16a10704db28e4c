"""Which models are recorded, and what of them is known."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..._torch import is_plain
from . import report
from .known import Known, Start
from .trace import Trace


class Recorder:
    """Of one learner: what is known of its model, and what its clones start from."""

    known: Known | None = None
    latest: Start | None = None

    def start(self, model: nn.Module, rates: Any) -> Trace | None:
        """A trace of a clone; None: the clone computes at once."""
        if not report.ON or not is_plain():
            return None
        known = self.known
        if known is None or not known.holds(model):
            self.known, self.latest = known, self.latest = Known(model), None
        if known.why:
            report.note("plain", known.name, known.why)
            return None
        start = self.latest
        if start is None or not _same(start.rates, rates) or not start.same():
            self.latest = start = Start(known, rates)
        return Trace(start)

    def __reduce__(self) -> Any:
        return Recorder, ()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and type(a) is type(b) and a == b)
