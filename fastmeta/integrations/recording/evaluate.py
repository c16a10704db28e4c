"""Recorded losses, evaluated: those of one program on other data in one native call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..._torch import accumulate
from ...inner.mlp_adapt import mlp_adapt
from ...networks.convnet import ConvNet
from ...networks.mlp import Mlp
from .report import note

IGNORED = -100


class Declined(Exception):
    """Why the native ops do not take recorded losses."""


class Inner:
    """Inner loops of k steps, each of its own task, of one kind: in native calls."""

    def __init__(self, traces: Sequence[Any], k: int) -> None:
        self.traces, self.steps, self.start = traces, traces[0].steps, traces[0].start
        self.known, self.method, self.calls = self.start.known, self.start.method, traces[0].calls
        begins = [j for j in range(k) if j == 0 or self.steps[j] is not self.steps[j - 1]]
        # Steps on the same data, one after the other: the first, and how many.
        self.segments = [(j, end - j) for j, end in zip(begins, [*begins[1:], k], strict=False)]

    def rates(self, j: int) -> Any:
        """Of step j, whose loss may be scaled."""
        rates, scale = self.start.rates, self.steps[j][4] if self.steps else 1.0
        if self.method is not None:
            if scale != 1.0:
                raise Declined("a step with momentum or decay, or of Adam, on a multiple of a loss")
            return self.method.optimiser(rates)
        if scale == 1.0:
            return rates
        return [r * scale for r in rates] if isinstance(rates, list) else rates * scale

    def support(self, j: int) -> tuple[Tensor, Tensor]:
        """What the tasks were adapted to at step j."""
        x, y = (stacked([trace.steps[j][i] for trace in self.traces]) for i in (0, 1))
        check_targets(self.steps[j][2], y)
        return x, y

    def adapted(self, segments: Sequence[tuple[int, int]]) -> Any:
        """The parameters [T, ...] after these segments; None: there are none."""
        params = None
        if self.method is not None and len(segments) > 1:  # the state goes from one to the next
            return self._adapted_at_once()
        for j, count in segments:
            network: Any = self.known.network_for(self.steps[j][2], count, self.steps[j][3])
            refuse_others(network)
            x, y = self.support(j)
            lr, optimiser = network.steps_of(self.rates(j))
            params = mlp_adapt(
                network.spread(self.start.params) if params is None else params, lr, network.flat(x), y, steps=count,
                activation=network.activation, loss=network.task.loss, first_order=network.first_order, optimiser=optimiser,
            )  # fmt: skip
        return params

    def _adapted_at_once(self) -> Any:
        """The parameters [T, ...] after all steps, each on a batch of its own."""
        each = [j for j, count in self.segments for _ in range(count)]
        if len({self.steps[j][2:] for j in each}) > 1:
            raise Declined("steps of one optimiser on several kinds of losses")
        network: Any = self.known.network_for(self.steps[0][2], len(each), self.steps[0][3])
        refuse_others(network)
        x, y = (torch.stack(batches) for batches in zip(*map(self.support, each), strict=True))
        lr, optimiser = network.steps_of(self.rates(0))
        x = x.flatten(3) if network.flattens else x
        return mlp_adapt(
            network.spread(self.start.params), lr, x, y, steps=len(each), activation=network.activation, loss=network.task.loss,
            first_order=network.first_order, batch_per_step=True, optimiser=optimiser,
        )  # fmt: skip

    def outputs(self, x: Tensor) -> Tensor:
        """f(theta_k, x) [T, n, ...], without a graph."""
        if len(self.segments) != 1 or self.start.own or not self.known.native:
            raise Declined("outputs after no steps, or steps on other data")
        ((j, count),) = self.segments
        network = self.known.network_for(self.steps[j][2], count, self.steps[j][3])
        with torch.no_grad():
            found: Tensor = network.predict(self.rates(j), (*self.support(j), x))
        return found


class Program(Inner):
    """Losses of one kind, each of its own task: the native call of all."""

    def __init__(self, losses: Sequence[Any]) -> None:
        super().__init__([loss.origin for loss in losses], losses[0].k)
        self.kind, self.losses = losses[0].kind, losses
        self.query = stacked([x.x for x in losses]), stacked([x.y for x in losses])
        check_targets(self.kind, self.query[1])
        self.last = self.segments[-1][0] if self.segments else 0
        self.network, self.data = self._call()

    def _call(self) -> tuple[Any, tuple[Tensor, ...]]:
        """The network of the last steps on the same data, and the data."""
        segments = self.segments
        joined = bool(segments) and self.steps[segments[-1][0]][2] == self.kind
        joined = joined and (self.method is None or len(segments) == 1)
        params = self.adapted(segments[: len(segments) - joined])
        if joined:
            j, count = segments[-1]
            network = self.known.network_for(self.kind, count, self.steps[j][3])
            data = (*self.support(j), *self.query)
        else:
            network, data = self.known.network_for(self.kind, 0, False), (*self.query, *self.query)
        if params is not None:
            refuse_others(network)
        elif self.start.own and self.known.native:
            params = network.spread(self.start.params)
        return network if params is None else replace(network, params=params), data

    def given(self, i: int) -> list[Tensor]:
        """What `data[i]` is made of."""
        if i < 2:
            return [trace.steps[self.last][i] for trace in self.traces]
        return [x.y if i == 3 else x.x for x in self.losses]

    def values(self, with_outputs: bool) -> tuple[Tensor, Tensor | None]:
        """The losses [T], and the outputs without a graph."""
        if self.start.own and not self.known.native:
            raise Declined("the engine starts from the model's parameters")
        noted = self._noted_values(with_outputs)
        if noted is not None:
            return noted
        if self.calls is not None and self.calls.log is not None:
            raise Declined("the running statistics come with the steps")
        if self.start.own and isinstance(self.network, ConvNet):  # its losses would go to the engine in the end
            found = self.network.in_one_call(self.rates(self.last), self.data, with_outputs)
            if found is None:
                raise Declined("the op of the network does not take the data")
            return found[0], found[1] if with_outputs else None
        if not with_outputs:
            return self.network.losses(self.rates(self.last), self.data), None
        both: tuple[Tensor, Tensor] = self.network.losses_and_outputs(self.rates(self.last), self.data)
        return both

    def with_gradients(self, counts: Tensor, with_outputs: bool) -> tuple[tuple[Tensor, Tensor | None], Any]:
        """`values`; and the pairs of a leaf, or of inputs with a graph, and the gradient of sum_t counts[t] losses[t] to it, or None where
        the values have the graph of it."""
        rates, network = self.rates(self.last), self.network
        leaves = self.known.leaves(network, self.start, rates if self.method is None else self.start.rates)
        if leaves is None or len(self.segments) > 1:
            return self.values(with_outputs), None
        needs, to = leaves
        of_data = [x.requires_grad and (i > 1 or network.steps > 0) for i, x in enumerate(self.data)]
        answer = self._noting(counts, (*needs[:-4], *of_data), with_outputs)
        if answer is None:
            return self.values(with_outputs), None
        found, grads = answer
        pairs = [*zip(to, grads[: len(to)], strict=True)]
        for i, g in zip([i for i, wanted in enumerate(of_data) if wanted], grads[len(to) :], strict=True):
            pairs += [(x, each) for x, each in zip(self.given(i), g.unbind(), strict=True) if x.requires_grad]
        return found, pairs

    def _noted_values(self, with_outputs: bool) -> tuple[Tensor, Tensor | None] | None:
        """`values` without a graph, with what batch norms met where somebody may ask for it."""
        if self.calls is None or torch.is_grad_enabled():
            return None
        rates, network = self.start.rates, self.network
        of_rates = len(network.spread(rates)) if isinstance(rates, list) else 1
        ones = _counts((1.0,) * len(self.losses), self.known.dtype)
        answer = self._noting(ones, [False] * (len(network.params) + of_rates + 4), with_outputs)
        return None if answer is None else answer[0]

    def _noting(self, counts: Tensor, needs: Sequence[bool], with_outputs: bool) -> Any:
        """`losses_with_gradients`; what batch norms met is noted where somebody may ask for it."""
        of_call = self.rates(self.last), self.data, (counts,), tuple(needs), with_outputs
        if self.calls is None:
            answer = self.network.losses_with_gradients(*of_call)
        else:
            answer = self.network.losses_with_statistics(*of_call)
        if answer is None:
            return None
        found, grads, *statistics = answer
        for i, loss in enumerate(self.losses if statistics else ()):
            for j in range(loss.k):
                loss.origin.calls.note(j, loss.origin.steps[j][0], statistics[0][i, j])
            loss.origin.calls.note(loss.k, loss.x, statistics[0][i, loss.k])
        return (found[0], found[1] if with_outputs else None), grads


def refuse_others(network: Any) -> None:
    """Parameters of each task are for one kind of network."""
    if not isinstance(network, Mlp):
        raise Declined("the steps are on other data")


def stacked(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def check_targets(kind: str, y: Tensor) -> None:
    if kind == "mse":
        return
    if not y.numel() or (int(y.amin()) <= IGNORED and bool((y == IGNORED).all(1).any())):
        raise Declined("all targets of a task are ignored")


def in_grad_mode() -> contextlib.AbstractContextManager[Any]:
    """As it was when the losses were recorded, whatever is on where they are evaluated."""
    if torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and not torch.is_inference_mode_enabled():
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    for context in (torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False)):
        stack.enter_context(context)
    return stack


def attempt(losses: Sequence[Any], of: Callable[[Program], Any]) -> Any:
    """of(Program(losses)); None, with a note why, where the native ops do not take them."""
    start, count = losses[0].origin.start, len(losses)
    why = "" if start.fresh() else "parameters were changed before the loss was needed"
    if count == 1 and not start.known.native:
        start.known.missed += 1
        why = why or "the engine gains nothing on one task"
    try:
        found = None if why else of(Program(losses))
    except (Declined, TypeError, ValueError, RuntimeError) as error:
        found, why = None, str(error).splitlines()[0]
    start.known.used += count * (found is not None)
    for loss in losses if found is not None and losses[0].origin.calls is not None else ():
        loss.origin.calls.advance()
    way = "replayed" if found is None else "batched" if count > 1 else "alone"
    note(way, start.known.name, why, count)
    return found


def values_of(losses: Sequence[Any], with_outputs: bool) -> tuple[Tensor, Tensor | None] | None:
    """The losses [T] of one program, and their outputs without a graph."""
    found: tuple[Tensor, Tensor | None] | None = attempt(losses, lambda program: program.values(with_outputs))
    return found


def with_gradients(losses: Sequence[Any], counts: Sequence[float], with_outputs: bool) -> Any:
    """`values_of`; pairs of a leaf and the gradient of sum_t counts[t] losses[t] to it, or None where the values have its graph; and
    counts."""
    cotangent = _counts(tuple(counts), losses[0].origin.start.known.dtype)
    answer = attempt(losses, lambda program: program.with_gradients(cotangent, with_outputs))
    return None if answer is None else (*answer, cotangent)


def back(losses: Sequence[Any], counts: Sequence[float], with_outputs: bool) -> tuple[Tensor, Tensor | None] | None:
    """`values_of`, and the gradient of sum_t counts[t] losses[t] into `.grad` of what it depends on."""
    answer = with_gradients(losses, counts, with_outputs)
    if answer is None:
        return None
    (found, outputs), pairs, cotangent = answer
    of_leaves, others = ([], [(found, cotangent)]) if pairs is None else apart(pairs)
    if others:
        torch.autograd.backward([x for x, _ in others], [g for _, g in others])
    accumulate(of_leaves)
    return found.detach(), outputs


def apart(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Gradients to leaves, and those that go on."""
    found: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = [], []
    for x, g in pairs:
        found[not x.is_leaf].append((x, g))
    return found


def outputs_of(trace: Any, k: int, x: Tensor) -> Tensor | None:
    """f(theta_k, x) of one task without a graph."""
    if not trace.start.fresh() or (trace.calls is not None and trace.calls.log is not None):
        return None
    try:
        found: Tensor = Inner([trace], k).outputs(x.detach().unsqueeze(0))[0]
        note("alone", trace.start.known.name, "outputs")
    except (Declined, TypeError, ValueError, RuntimeError):
        return None
    return found


@functools.lru_cache(maxsize=256)
def _counts(counts: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor(counts, dtype=dtype, device="cpu")
