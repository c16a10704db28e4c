"""What a call of the model may change beside its outputs, kept and put back: for a call that is not to count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._chain import noise_of, restore
from ._problem import Flat, Problem


class State:
    """The generators', and, of all modules, attributes and buffers, values of these included. (What the attributes hold, lists say,
    is not copied.)"""

    def __init__(self, problem: Problem, flat: Flat) -> None:
        self.noise = noise_of(flat.data[0])
        modules = list(problem.plan.task.modules())
        held = (own for m in modules for own in (m.__dict__, m._buffers))
        self.attributes = [(own, dict(own)) for own in held if isinstance(own, dict)]  # a scripted module's are none
        self.buffers = [(b, b.clone()) for b in problem.plan.task.buffers()]

    def put_back(self) -> None:
        restore(self.noise)
        for own, before in self.attributes:
            for name in [name for name in own if name not in before]:
                del own[name]
            for name, value in before.items():
                if own.get(name) is not value:
                    own[name] = value
        with torch.no_grad():
            for b, value in self.buffers:
                if not torch.equal(b, value):
                    b.copy_(value)

    def values(self) -> list[Any]:
        """All attributes and buffers as they are now."""
        return [x for own, _ in self.attributes for x in own.values() if isinstance(x, Tensor)]
