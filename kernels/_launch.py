"""What the launchers share: tensors as the kernels take them, powers of two, the launch itself."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype that sums over `x` are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def triton_dtype(x: Tensor) -> Any:
    """The same as Triton names it."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def dense(x: Tensor, rank: int) -> Tensor:
    """`x` as [T, *core], the core of `rank` dimensions contiguous, the task axis with any stride (0 where expanded)."""
    x = x if x.ndim > rank else x.unsqueeze(0)
    expected = 1
    for size, stride in zip(reversed(x.shape[1:]), reversed(x.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x


def power_of_two(n: int, low: int, high: int) -> int:
    """The smallest power of two that is at least n, within [low, high]."""
    return min(max(1 << max(n - 1, 0).bit_length(), low), high)


def compiler_options(num_warps: int, amd: bool = bool(torch.version.hip)) -> dict[str, Any]:
    """For blocks of so many warps of 32 threads; AMD's have 64."""
    if amd:
        return {"enable_fp_fusion": True, "num_warps": num_warps // 2}
    # without maxnreg ptxas spills a few registers to fit one more block on a multiprocessor
    return {"enable_fp_fusion": True, "num_warps": num_warps, "maxnreg": 255}


def launch(kernel: Any, programs: int, like: Tensor, *args: Any, num_warps: int, **constants: Any) -> None:
    """Run `programs` programs on the device of `like`, on its current stream; none for an empty grid."""
    if programs == 0:
        return
    if like.is_cuda:
        with torch.cuda.device(like.device):
            kernel[(programs,)](*args, **constants, **compiler_options(num_warps))
    else:
        kernel[(programs,)](*args, **constants)


_counters: dict[tuple[torch.device, int], Tensor] = {}


def counters(like: Tensor, count: int) -> Tensor:
    """At least `count` integers, all 0, for programs that wait for each other; the kernel leaves them 0.

    Kept for each device and stream, whose launches follow each other: no launch to fill them. A graph under capture has its own.
    """
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=like.device)
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
    kept = _counters.get((like.device, stream))
    if kept is None or kept.numel() < count:
        kept = torch.zeros(max(count, 1024), dtype=torch.int32, device=like.device)
        _counters[like.device, stream] = kept
    return kept
