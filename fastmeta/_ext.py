"""The native kernels, `fastmeta._C`, tied to this process's torch: its tensors and its pool of threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta import _C
from fastmeta._C import *  # noqa: F403  (the kernels, by name)
from fastmeta._memory import in_memory, key_places
from fastmeta.reference.mlp_forward import RESIDUAL_NORM

# FASTMETA_DLPACK=0 views tensors through Python attributes, as on a torch without the exchange table.
_C.init_tensor(Tensor, os.environ.get("FASTMETA_DLPACK") != "0")
_C.init_values(in_memory, *key_places())
openmp = _C.init_parallel(os.path.dirname(torch.__file__))


def _too_deep(params: Sequence[Any], *args: Any) -> str | None:
    """The limits of the mlp kernels: their arrays have a fixed number of layers; residual blocks are the CPU's."""
    if any(isinstance(x, str) and x.endswith(RESIDUAL_NORM) for x in args) and params[0].is_cuda:
        return "takes no residual_norm on CUDA"
    layers = len(params) // 2
    return None if layers <= _C.max_layers else f"takes at most {_C.max_layers} layers, got {layers}"


mlp_forward_limit = mlp_loss_limit = mlp_grad_limit = _too_deep
mlp_hvp_limit = _too_deep


def _steps(params: Sequence[Any], *args: Any) -> str | None:
    """The limit of the kernels of an inner loop, whose last argument says what its steps are beyond theta - alpha g."""
    other = isinstance(args[-1], tuple) and params[0].is_cuda
    return "takes no batch for each step and no optimiser on CUDA" if other else None


def _of_loop(*args: Any) -> str | None:
    return _steps(*args) or _too_deep(*args)


mlp_adapt_limit = mlp_meta_loss_limit = _of_loop


def _learned(*args: Any) -> str | None:
    """The limit of the optimisers' steps, whose last argument that is a list has the numbers that are tensors."""
    learned = [x for x in args if isinstance(x, list)][-1]
    return "takes momentum, betas and weight_decay as numbers, got a tensor" if learned else None


momentum_step_limit = adam_step_limit = _learned


def _too_much(params: Sequence[Any], *args: Any) -> str | None:
    """The limits of the conv kernels, whose blocks are the first static argument that is a tuple."""
    if params[0].is_cuda and params[-2] is None:
        return "takes no network without a linear layer on CUDA"
    blocks = next(x for x in args if isinstance(x, tuple))
    if params[0].is_cuda and any(block[7] != 3 for block in blocks):
        return "takes kernels 3 x 3 on CUDA"
    if params[0].is_cuda and blocks[-1][5] == "mean":
        return "takes no means over pixels on CUDA"
    if len(blocks) > _C.max_convs:
        return f"takes at most {_C.max_convs} blocks, got {len(blocks)}"
    for what, place, most in (("padding", 1, _C.most_padding), ("pool", 5, _C.most_pool)):
        largest = max((block[place] for block in blocks if block[place] != "mean"), default=0)
        if largest > most:
            return f"takes a {what} of at most {most}, got {largest}"
    for i, block in enumerate(blocks):
        if block[1] >= block[7]:
            return f"takes a padding below the kernel's side, got {block[1]} of {block[7]} in blocks[{i}]"
    skips, paddings = [block[8] for block in blocks], [block[1] for block in blocks]
    for i, skip in enumerate(skips):
        if skip and (skips[i - 1] or skips[i - skip]):
            return f"takes a skip of blocks without one, got blocks[{i}] after or from one that has"
        if skip and paddings[i] > paddings[i - skip]:
            return f"takes a skip from a padding that is no smaller, got {paddings[i]} from {paddings[i - skip]}"
    return None


def _of_conv_loop(*args: Any) -> str | None:
    return _steps(*args) or _too_much(*args)


conv_forward_limit = conv_loss_limit = conv_grad_limit = conv_hvp_limit = _too_much
conv_adapt_limit = conv_meta_loss_limit = _of_conv_loop
