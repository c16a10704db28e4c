from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def hvp(fn: Callable[[Any], Tensor], params: Any, vectors: Any) -> Any:
    """H v by pulling v back through the gradient: reverse over reverse, the cheaper way in PyTorch."""
    pullback = torch.func.vjp(torch.func.grad(fn), params)[1]
    return pullback(vectors)[0]
