from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..._torch import tree_leaves
from .. import _arguments, _library
from ._optimisers import fresh

__all__ = ["flatten", "get_func_params"]
__getattr__ = _library.otherwise("higher.utils", __all__)


def flatten(x: Any) -> list[Any]:
    """What a tree of lists, tuples and dicts holds."""
    return tree_leaves(x)


def get_func_params(module: nn.Module, device: torch.device | None = None, safe_copy: bool = True) -> list[Tensor]:
    """Leaves with the values of the parameters; on the same memory unless `safe_copy`."""
    _arguments.module("get_func_params", "module", module)
    return [fresh(p, device, safe_copy) for p in module.parameters()]
