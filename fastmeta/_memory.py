"""Tensors whose memory is not their value, as torch leaves a negation for later: what puts the value there, and tells such tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._torch import NO_DISPATCH, is_zeros, keys_and_addresses, lazy_tensors

PLAIN_KEYS = ("CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA", "ADInplaceOrView")


def in_memory(x: Tensor) -> Tensor | None:
    """`x` with its values in its memory, where torch has left a negation, a conjugation or zeros for later. None for a subclass
    that keeps its values in its own way."""
    if type(x).__torch_dispatch__ is not NO_DISPATCH or x.layout is not torch.strided:
        return None
    if is_zeros(x):
        return torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    return x.resolve_conj().resolve_neg()


def key_places() -> tuple[int, int, int]:
    """Where torch keeps a tensor's dispatch keys, which tell of such tensors: how far into the Python object the address of
    the C++ one lies, how far behind it the keys, and the keys of plain tensors. To ask a tensor's methods would take longer
    than all other checks. Looked for in tensors whose keys torch tells; where they are not found, (-1, -1, 0): then they are asked.
    """
    tensors = lazy_tensors()
    told = keys_and_addresses(tensors, PLAIN_KEYS)
    if told is None:
        return -1, -1, 0
    keys, of_plain, addresses = told
    impl = _find([id(x) for x in tensors], addresses, Tensor.__basicsize__)
    behind = _find(addresses, keys, 192)
    return (impl, behind, of_plain) if impl >= 0 and behind >= 0 else (-1, -1, 0)


def _find(addresses: list[int], values: list[int], size: int) -> int:
    """How far behind each address its value lies, at most `size` bytes, or -1."""
    for place in range(0, size, 8):
        if all(ctypes.c_uint64.from_address(a + place).value == v for a, v in zip(addresses, values, strict=True)):
            return place
    return -1


def all_in_memory(op: str, flat: Sequence[Any]) -> list[Any]:
    """`flat` with the tensors among it `in_memory`; TypeError where that cannot be."""
    found = [in_memory(x) if isinstance(x, Tensor) else x for x in flat]
    for x, y in zip(flat, found, strict=True):
        if y is None and x is not None:
            raise TypeError(f"{op}: the tensors must have memory of their own, got {type(x).__name__}")
    return found
