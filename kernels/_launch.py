"""What the launchers share: tensors as the kernels take them, powers of two, the launch itself.

Triton compiles a kernel anew where an integer is 1 or a multiple of 16 and was not. So kernels name those that change from batch
to batch in `do_not_specialize`: all but features, channels and pixels, whose multiples of 16 let loads take 16 bytes. Task
strides count rows, so that these alone tell how rows are aligned.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.driver import driver

from fastmeta._replay import Recorder, Refused, recording, value_of

TESTED = ("3.6.", "3.9.")  # releases of Triton


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype that sums over `x` are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def triton_dtype(x: Tensor) -> Any:
    """The same as Triton names it."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def dense(x: Tensor, rank: int) -> Tensor:
    """`x` as [T, *core], the core of `rank` dimensions contiguous, tasks any number of rows apart (0 where expanded)."""
    x = x if x.ndim > rank else x.unsqueeze(0)
    expected = 1
    for size, stride in zip(reversed(x.shape[1:]), reversed(x.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x.contiguous() if x.stride(0) % _row_size(x) else x


def task_rows(x: Tensor) -> int:
    """How many rows, of x [T, rows, ...], a task is from the next; 0 where all tasks share those of one."""
    return 0 if x.shape[0] == 1 else x.stride(0) // _row_size(x)


def _row_size(x: Tensor) -> int:
    return max(math.prod(x.shape[2:]), 1)


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
    if isinstance(kernel, triton.JITFunction):
        constants |= compiler_options(num_warps)
    if like.is_cuda and like.device.index != torch.cuda.current_device():
        if recording.recorder is not None:
            raise Refused
        with torch.cuda.device(like.device):
            kernel[(programs,)](*args, **constants)
    elif recording.recorder is not None:
        _launch_recorded(recording.recorder, kernel, programs, args, constants)
    else:
        kernel[(programs,)](*args, **constants)


def _launch_recorded(
    recorder: Recorder, kernel: Any, programs: int, args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    compiled = kernel[(programs,)](*map(value_of, args), **{name: value_of(x) for name, x in constants.items()})
    if type(compiled).__name__ != "CompiledKernel":  # such as one that is still compiled
        raise Refused
    bound = kernel.signature.bind(*args, **{name: x for name, x in constants.items() if name in kernel.arg_names})
    bound.apply_defaults()
    recorder.constant(compiled)  # else it could be unloaded
    # Of the launcher in TESTED releases: the stream comes before, the hooks are None.
    launcher = compiled.run, compiled.function, compiled.packed_metadata, None, None, None
    recorder.launch(kernel, programs, launcher, list(bound.arguments.values()))


def is_replayable() -> bool:
    """Whether Triton compiles its kernels, by a release whose launcher is known."""
    return triton.__version__.startswith(TESTED) and not triton.knobs.runtime.interpret


def is_watched() -> bool:
    """Whether a launch is more than a launch: hooks, Triton's debugger or instrumentation."""
    runtime = triton.knobs.runtime
    return bool(
        runtime.launch_enter_hook.calls
        or runtime.launch_exit_hook.calls
        or runtime.debug
        or runtime.add_stages_inspection_hook
        or triton.knobs.compilation.instrumentation_mode
    )


def current() -> tuple[int, int]:
    """Triton's device, and its stream."""
    active = driver.active
    device = active.get_current_device()
    return device, active.get_current_stream(device)


def counters(like: Tensor, count: int) -> Tensor:
    """Integers, all 0, for programs of one launch that wait for each other: of this call alone, filled on its stream, so that no
    other call, stream or graph ever meets them."""
    return torch.zeros(count, dtype=torch.int32, device=like.device)
