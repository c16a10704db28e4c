"""The running statistics of batch norm. Native calls tell what they met; who looks at the buffers finds them as after every call of a
clone in its turn."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._torch import BUFFERS, AnyBatchNorm
from ...networks.batch_norm import track
from ...networks.program import Program
from .evaluate import in_grad_mode
from .unsettled import Unsettled

MOST = 1 << 27  # elements of the inputs of calls that wait
OF_CALL = 1 << 14  # what a call counts beside its inputs
WRITTEN = (
    "MAML: running statistics of batch norm must be written by their module alone while calls of its clones are recorded, got another "
    "write; FASTMETA_RECORD=0 in the environment turns recording off"
)


class Calls:
    """Of one clone. `found`: the means and unbiased variances, [2, channels of all], of the batches that the batch norms of a call met, by
    the step and the inputs."""

    __slots__ = ("found", "log", "made")

    def __init__(self, log: Log | None) -> None:
        """`log`: of the model whose buffers the clone shares; None: it has its own, and keeps `made` for them."""
        self.log, self.made = log, list[tuple[int, Tensor]]()
        self.found: dict[tuple[int, int], Tensor] = {}

    def add(self, trace: Any, k: int, x: Tensor) -> None:
        if self.log is None:
            self.made.append((k, x))
        else:
            self.log.add(Call(trace, k, x))

    def leave(self, trace: Any, norms: Sequence[nn.Module]) -> None:
        """What all calls `made` leave in the buffers of these batch norms."""
        for k, x in self.made:
            if (k, id(x)) not in self.found:
                with in_grad_mode():
                    trace.outputs(k, x)
            track_all(norms, self.found[k, id(x)])

    def note(self, k: int, x: Tensor, found: Tensor) -> None:
        self.found[k, id(x)] = found

    def advance(self) -> None:
        if self.log is not None:
            self.log.advance()

    def why_not(self) -> str:
        """Why a call is computed at once, or ""."""
        shared = self.log is not None and any(of() is not None for of in self.log.plain)
        return "a clone that shares the running statistics computes at once" if shared else ""


class Call(NamedTuple):
    trace: Any
    k: int
    x: Tensor

    @property
    def found(self) -> Tensor | None:
        found: Tensor | None = self.trace.calls.found.get((self.k, id(self.x)))
        return found


class Log:
    """The calls of a model's clones that are not in its buffers yet. Meanwhile these are `Unsettled`."""

    def __init__(self) -> None:
        self.pending: deque[Call] = deque()
        self.held: list[Unsettled] = []
        self.versions: list[int] = []  # of the buffers
        self.size = 0
        self.plain: list[weakref.ref[Any]] = []  # clones that compute at once

    def add(self, call: Call) -> None:
        known = call.trace.start.known
        if not self.pending or self.pending[-1].trace.start.known is not known:
            self._hold(known.norms)
        self.pending.append(call)
        self.size += call.x.numel() + OF_CALL
        if self.size > MOST:
            self.settle("too many calls wait")

    def _hold(self, norms: Sequence[nn.Module]) -> None:
        for norm in norms:
            held = getattr(norm, BUFFERS)
            if isinstance(held, Unsettled) and held.listener is not self:
                held.listener.settle("the model is cloned")
            if not isinstance(getattr(norm, BUFFERS), Unsettled):
                self.held.append(Unsettled(self, norm, BUFFERS))
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        return [b._version for held in self.held for b in held.original.values() if b is not None]

    def advance(self) -> None:
        """The calls whose batches are known, as far as they come first."""
        if not self.pending or self.pending[0].found is None:
            return
        if self._versions() != self.versions:
            self._leave()
            raise RuntimeError(WRITTEN)
        while self.pending and (found := self.pending[0].found) is not None:
            call = self.pending.popleft()
            self.size -= call.x.numel() + OF_CALL
            track_all(call.trace.start.known.norms, found)
        self.versions = self._versions()
        if not self.pending:
            self._leave()

    def settle(self, why: str) -> None:
        """All of them."""
        while self.pending:
            call = self.pending[0]
            if call.found is None:
                self._find(call)
            self.advance()
        self._leave()

    def _find(self, call: Call) -> None:
        with in_grad_mode():
            try:
                call.trace.parameters(call.k)
            except IndexError:  # of labels: where it is not put off, the program has come no further than their loss
                self.pending = deque(c for c in self.pending if c.trace is not call.trace or c.found is not None)
            else:
                call.trace.outputs(call.k, call.x)

    def computes(self, clone: weakref.ref[Any]) -> None:
        """A clone computes at once from here on."""
        self.settle("a clone computes at once")
        self.plain = [of for of in self.plain if of() is not None] + [clone]

    def _leave(self) -> None:
        self.pending.clear()
        for held in self.held:
            held.leave()
        self.held, self.size = [], 0


def norms_of(model: nn.Module) -> list[Any]:
    """All its batch norms as they run, one after the other."""
    layers = [step.layer for step in Program(model).steps]
    return [layer for layer in layers if isinstance(layer, AnyBatchNorm)]


def may_track(norms: Sequence[nn.Module], dtype: torch.dtype) -> bool:
    """Whether the buffers are what `track_all` takes."""
    buffers = [b for norm in norms for b in getattr(norm, BUFFERS).values() if b is not None]
    plain = all(type(b) is Tensor and b.is_cpu and not b.requires_grad and not b.is_inference() for b in buffers)
    of_dtype = all(b.dtype is dtype for b in buffers if b.is_floating_point())
    return plain and of_dtype and len({*map(id, norms)}) == len(norms) and len({*map(id, buffers)}) == len(buffers)


def buffers_of(norm: nn.Module) -> dict[str, Any]:
    held: dict[str, Any] = getattr(norm, BUFFERS)
    return held.original if isinstance(held, Unsettled) else held


@torch.no_grad()
def track_all(norms: Sequence[Any], found: Tensor) -> None:
    begin = 0
    for norm in norms:
        end = begin + norm.num_features
        track(buffers_of(norm), norm.momentum, found[0, begin:end], found[1, begin:end])
        begin = end


@contextlib.contextmanager
def noting(trace: Any, k: int, x: Tensor) -> Iterator[None]:
    """Inside, the model computes that call, and what its batch norms meet is noted."""
    found: list[Tensor] = []

    def note(_: Any, inputs: Any) -> None:
        z = inputs[0].detach()
        var, mean = torch.var_mean(z, [0, *range(2, z.ndim)])
        found.append(torch.stack([mean, var]))

    handles = [m.register_forward_pre_hook(note) for m in trace.start.known.norms_alone]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    trace.calls.note(k, x, torch.cat(found, 1))
    trace.calls.advance()
