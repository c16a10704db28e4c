from __future__ import annotations

from typing import Any

from torch import nn

from ...._torch import CHILDREN


class BaseLearner(nn.Module):
    """A model in the attribute `module`, whose other attributes are to be had here too."""

    module: Any

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get(CHILDREN, {}).get("module")
            if module is None:
                raise
            return getattr(module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)
