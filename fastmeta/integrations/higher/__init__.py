"""The names of higher 0.2.1 that a program with inner loops by SGD or Adam calls: loops on a copy of a model whose parameters are
results. `fastmeta.MAML` takes all tasks at once, and its memory does not grow with the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .._library import otherwise
from . import optim, patch, utils
from ._optimisers import DifferentiableOptimizer, Override
from ._recorded import recorded
from .optim import create_diff_optim, get_diff_optim, register_optim
from .patch import monkeypatch

__all__ = [
    "create_diff_optim",
    "get_diff_optim",
    "innerloop_ctx",
    "monkeypatch",
    "optim",
    "patch",
    "register_optim",
    "utils",
]
__getattr__ = otherwise("higher", __all__)


@contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    device: torch.device | None = None,
    copy_initial_weights: bool = True,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[Any, DifferentiableOptimizer]]:
    """(fmodel, diffopt): a copy of `model`, and steps of its parameters by diffopt.step(loss), which gradients go through.

    `opt`: a torch.optim.SGD or Adam on parameters of `model`. `copy_initial_weights`: start from leaves of the copy's own
    (`fmodel.parameters(time=0)`); False: gradients reach those of `model`. `override`: {"lr": rates}, one or one for each
    group of `opt`, which may be learned tensors. `track_higher_grads`: False for evaluation, where every step starts a new graph.
    """
    found = recorded(model, opt, override, copy_initial_weights, track_higher_grads) if device is None else None
    if found is not None:
        yield found
        return
    fmodel = monkeypatch(model, device, copy_initial_weights, track_higher_grads)
    params = nn.Module.parameters(model)  # all, whatever the model makes of the method
    yield fmodel, get_diff_optim(opt, params, fmodel, device, override, track_higher_grads=track_higher_grads)
