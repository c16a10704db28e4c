"""Which implementation of an op runs: the extension, Triton, or the PyTorch reference. `_route` comes before it."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import reference as references
from ._autograd import Flat, Needs, Op
from ._layout import Layout, tensors_of, unflatten
from ._memory import all_in_memory
from ._replay import Replayed
from ._torch import is_recorded
from .types import Backend

BACKENDS = ("triton", "ext", "reference")
ORDER = {"cuda": ("triton", "ext", "reference"), "cpu": ("ext", "reference")}
CACHED = 1024  # calls that differ in their static arguments, of each cache
# With a native <op>_value_and_grad: forward finds the gradients of each task's loss.
FUSED = ("conv_loss", "conv_meta_loss", "mlp_loss", "mlp_meta_loss", "proto_loss")
# What they call has them; the losses, on a CPU, as a whole too.
WITHOUT_KERNELS = ("hvp", "proto_loss_loo", "symmetric_loss")
LOW_PRECISION = (torch.float16, torch.bfloat16)
# Whose native CPU kernels read and write float16 and bfloat16 as they are.
NARROW = (
    "conv_adapt", "conv_forward", "conv_grad", "conv_hvp", "conv_loss", "conv_meta_loss",
    "matching_log_probs", "mlp_adapt", "mlp_forward", "mlp_grad", "mlp_hvp", "mlp_loss", "mlp_meta_loss",
    "proto_log_softmax", "proto_loss", "prototypes", "sgd_step",
)  # fmt: skip


def _known(name: str) -> str:
    if not isinstance(name, str) or name not in ("auto", *BACKENDS):
        raise ValueError(f"fastmeta: backend must be one of {('auto', *BACKENDS)}, got {name!r}")
    return name


_initial: str = _known(os.environ.get("FASTMETA_BACKEND", "auto"))
_forced = contextvars.ContextVar("fastmeta_backend", default=_initial)


@contextlib.contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Run every op called in this block on one backend: "triton", "ext", "reference", or "auto" for the usual choice.

    A forced backend never falls back: where it cannot run, the op raises RuntimeError with the reason. The choice is made
    when an op is called and holds for its backward, wherever that runs. The environment variable FASTMETA_BACKEND sets it for
    a whole process, from the import on.

    The block holds for its own thread, and for the asyncio tasks made in it. A thread that is started in it begins with the
    choice of the process. To hand it this one, start the thread in a copy of the context:

    ```python
    import contextvars, threading
    import torch, fastmeta

    def work():
        return fastmeta.sgd_step(torch.ones(3), torch.ones(3), 0.1)

    with fastmeta.backend("reference"):
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(work,))
    thread.start()  # `work` runs on the reference
    thread.join()
    ```
    """
    token = _forced.set(_known(name))
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str:
    """The backend that is asked for now, or "auto"."""
    return _forced.get()


def run(
    name: str, flat: Flat, layout: Layout, static: tuple[Any, ...], cores: tuple[Any, ...], device: torch.device
) -> tuple[Tensor, ...]:
    """Choose the backend for `flat` and run the op there; float16 and bfloat16 are widened where no kernel takes them.

    torch.jit.trace records PyTorch's own operations alone: it gets the reference.
    """
    chosen = "reference" if is_recorded() else choose(name, device, _forced.get(), flat, layout, static)
    op = op_on(name, chosen, layout, static, cores)
    narrow = chosen == "ext" and device.type == "cpu" and name in NARROW
    return op(*flat) if narrow or chosen in ("reference", "triton") else widened(op, flat)


def widened(fn: Callable[..., tuple[Tensor, ...]], flat: Sequence[Any]) -> tuple[Tensor, ...]:
    """fn(*flat), float16 and bfloat16 computed in float32 and rounded back."""
    dtype = next(x.dtype for x in flat if isinstance(x, Tensor) and x.is_floating_point())
    if dtype not in LOW_PRECISION:
        return fn(*flat)
    wide = (x.float() if isinstance(x, Tensor) and x.dtype == dtype else x for x in flat)
    return tuple(y.to(dtype) for y in fn(*wide))


def choose(name: str, device: torch.device, forced: str, flat: Flat, layout: Layout, static: tuple[Any, ...]) -> str:
    """The backend that op `name` runs on; RuntimeError with every refusal's reason where a forced one cannot."""
    found, refused = first_that_runs(name, device, forced, flat, layout, static)
    if found is not None:
        return found
    reasons = "".join(f"\n  {candidate}: {reason}" for candidate, reason in refused.items())
    raise RuntimeError(f"{name}: a backend must be able to run on {device.type}, got{reasons}")


def first_that_runs(
    name: str, device: torch.device, forced: str, flat: Flat, layout: Layout, static: tuple[Any, ...]
) -> tuple[str | None, dict[str, str]]:
    """The first backend in question that can, if any, and why those before it cannot."""
    refused: dict[str, str] = {}
    for candidate, reason, limit in _candidates(name, device, forced):
        reason = reason or (limit(*unflatten(flat, layout), *static) if limit else None)
        if reason is None:
            return candidate, refused
        refused[candidate] = reason
    return None, refused


@functools.lru_cache(maxsize=CACHED)
def _candidates(
    name: str, device: torch.device, forced: str
) -> tuple[tuple[str, str | None, Callable[..., str | None] | None], ...]:
    """For each backend in question, in order: why it has no kernel, and what tells its limits (a dtype or size), if any."""
    found = []
    for candidate in ORDER.get(device.type, ("reference",)) if forced == "auto" else (forced,):
        reason = unavailable(name, candidate, device)
        limit = None
        if candidate != "reference" and reason is None:
            limit = getattr(_module(name, candidate), f"{name}_limit", None)
        found.append((candidate, reason, limit))
    return tuple(found)


@functools.lru_cache(maxsize=CACHED)
def unavailable(name: str, candidate: str, device: torch.device) -> str | None:
    """Why the backend has no kernel of op `name` for this very device, or None where it has one."""
    if candidate == "reference":
        return None
    if candidate == "triton":
        from_triton = _triton_missing(device.type)
        if from_triton:
            return from_triton
    try:
        module = _module(name, candidate)
    except ImportError as error:
        if candidate == "ext" and device.type == "cpu":
            _warn_not_native(str(error))
        missing = "no such kernel" if error.name == f"fastmeta.kernels.{name}" else str(error)
        return f"not built ({error})" if candidate == "ext" else missing
    if not hasattr(module, f"{name}_fwd"):
        return "no such kernel" if candidate == "ext" else f"kernels/{name}.py has no {name}_fwd"
    if candidate == "ext" and device.type == "cuda":
        built = module.build_info()["cuda"]
        if name not in module.cuda_ops():
            return "no such CUDA kernel" if built else "built without CUDA"
        if torch.cuda.is_available() and not runs_on(built, capability := torch.cuda.get_device_capability(device)):
            return f"built for sm_{built.replace(',', ', sm_')}, got sm_{capability[0]}{capability[1]}"
    if candidate == "ext" and device.type not in ("cpu", "cuda"):
        return f"no kernels for {device.type}"
    return None


def runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Whether a card has machine code among the architectures `built`, "80,90a,...": that of its own generation, up to its own
    minor version ("a": for that very one), or the last one's PTX, for what comes later."""
    major, minor = capability
    for arch in built.split(","):
        its_major, its_minor = divmod(int(arch.rstrip("a")), 10)
        if its_major == major and (its_minor == minor or (its_minor < minor and not arch.endswith("a"))):
            return True
    return not arch.endswith("a") and capability >= (its_major, its_minor)


@functools.lru_cache(maxsize=CACHED)
def _warn_not_native(error: str) -> None:
    warnings.warn(
        "fastmeta: no native CPU kernels, the PyTorch reference runs instead. Install again where a C++ compiler is found. "
        f"({error})",
        stacklevel=2,
    )


def _triton_missing(device: str) -> str | None:
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs CUDA tensors (TRITON_INTERPRET=1 interprets the kernels on a CPU)"
    return None


def _module(name: str, candidate: str) -> ModuleType:
    return import_module("fastmeta._ext" if candidate == "ext" else f"fastmeta.kernels.{name}")


def flat_reference(name: str, layout: Layout, static: tuple[Any, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """The reference of op `name` as a function of flat inputs, of any precision."""
    reference = getattr(references, name)

    def plain(*flat: Any) -> tuple[Tensor, ...]:
        return tensors_of(reference(*unflatten(flat, layout), *static))

    return lambda *flat: widened(plain, flat)


@functools.lru_cache(maxsize=CACHED)
def op_on(name: str, chosen: str, layout: Layout, static: tuple[Any, ...], cores: tuple[Any, ...]) -> Op:
    """The differentiable op `name` on one backend, with its static arguments and the lengths of its lists fixed."""
    reference = flat_reference(name, layout, static)
    flat_cores: list[int | None] = []
    for length, core in zip(layout, cores, strict=True):
        flat_cores += [core] if length is None else [core[i % len(core)] if core else None for i in range(length)]

    if chosen == "reference":
        return Op(reference, None, None, flat_cores)
    module = _module(name, chosen)
    fwd: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | str] | None = getattr(
        module, f"{name}_fwd", None
    )
    bwd: Callable[..., tuple[Tensor, ...]] | None = getattr(module, f"{name}_bwd", None)
    bwd2: Callable[..., tuple[Tensor, ...]] | None = getattr(module, f"{name}_bwd2", None)

    lists = any(length is not None for length in layout)

    # The extension sees to it itself.
    placed = functools.partial(all_in_memory, name) if chosen == "triton" else None

    def forward(flat: Flat, needs: Needs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | str:
        assert fwd is not None
        flat = placed(flat) if placed else flat
        return fwd(*(unflatten(flat, layout) if lists else flat), *static, needs)

    def backward(cotangents: Flat, saved: Flat, flat: Flat, needs: Needs) -> tuple[Tensor, ...]:
        assert bwd is not None
        cotangents, flat = (placed(cotangents), placed(flat)) if placed else (cotangents, flat)
        return bwd(cotangents, saved, *(unflatten(flat, layout) if lists else flat), *static, needs)

    def backward2(cotangents: Flat, first: Flat, flat: Flat, wanted: Needs, needs: Needs) -> tuple[Tensor, ...]:
        assert bwd2 is not None
        cotangents, first, flat = map(placed, (cotangents, first, flat)) if placed else (cotangents, first, flat)
        return bwd2(cotangents, first, *(unflatten(flat, layout) if lists else flat), *static, wanted, needs)

    runs: list[Callable[..., Any]] = [forward, backward, backward2]
    if chosen == "triton" and (launches := import_module("fastmeta.kernels._launch")).is_replayable():
        runs = [Replayed(run, groups, launches) for run, groups in zip(runs, (1, 3, 3), strict=True)]
    return Op(reference, runs[0], runs[1] if bwd else None, flat_cores, backward2=runs[2] if bwd2 else None)


def refuse_export(name: str) -> None:
    """RuntimeError inside torch.export and torch.jit.trace, which have no way to trace a gradient."""
    if torch.compiler.is_exporting():
        raise RuntimeError(f"{name}: must run outside torch.export, got a call inside")
    if not torch.compiler.is_compiling() and is_recorded():
        raise RuntimeError(f"{name}: must run outside torch.jit.trace, got a call inside")
