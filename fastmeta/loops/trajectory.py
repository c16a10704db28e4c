"""Down an inner loop and back again: no graph outlives its step, so memory grows with the steps only by the parameters and the state
that are kept.

With (theta_{k+1}, s_{k+1}) = U(theta_k, s_k, g_k, alpha_k), g_k = dL/dtheta(theta_k, x_k, w), U the optimiser, x_k the batch, w whatever
the loss closes over, and v the gradient with respect to (theta_{k+1}, s_{k+1}), a step back is

    (dtheta, ds, dg, dalpha_k) = v dU,    dtheta += dg . dg_k/dtheta,    dx_k += dg . dg_k/dx_k,    dw += dg . dg_k/dw
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._autograd import gradients, is_autocast, scatter
from .._torch import foreach_add, foreach_copy_, is_functional
from ..networks.batch_norm import ExactNorms
from ..networks.chain import leaf, noise_of, restore, twice_differentiable
from .captured import Captured, Standing, around, must_stand_in
from .loop import Loop, Replay, Slot, segments

Point = list[Tensor]  # parameters and state


class Way:
    """The way of a loop on its items; with `captured`, that is filled with what the losses close over."""

    def __init__(self, loop: Loop, items: Sequence[Tensor], replay: Replay, captured: Captured | None = None) -> None:
        self.loop, self.items, self.replay, self.captured = loop, items, replay, captured

    def down(self) -> tuple[list[Tensor], list[Tensor]]:
        """The results; and, for the way back, of each tensor of a point the values that are kept, [points, ...], in memory of their
        own, which does not lie in pieces between what the steps free."""
        loop, losses = self.loop, []
        point = [x.detach() for x in self.items[: loop.moving]]
        rows = {k: row for row, k in enumerate(loop.kept)} if self.captured is not None else {}
        kept = [x.new_empty((len(rows), *x.shape)) for x in point]
        places = list(zip(*(whole.unbind() for whole in kept), strict=True))
        for k in range(loop.steps):
            point = self.step(k, point)
            if k + 1 in rows:
                foreach_copy_(places[rows[k + 1]], point)
            if loop.outers and loop.outers[k] is not None:
                losses.append(self._outer(k, point))
        return [*losses, *point[loop.params :]] if loop.outers else point, kept

    def step(self, k: int, point: Point) -> Point:
        """From theta_k and its state to those of k + 1."""
        loop, captured, name = self.loop, self.captured, ("step", k)
        given = {slot: self._argument(x, k, x.requires_grad) for slot, x in loop.at(k, self.items).items()}
        theta = [self._argument(p, k, True) for p in point[: loop.params]]
        with torch.enable_grad():
            total = self.replay(name, lambda: loop.total(k, theta, given))
            if captured is not None and not loop.first_order:
                captured.look(total, k, lambda: self.replay(name, lambda: loop.total(k, theta, given)), twice=True)
            grads = gradients([total], theta)
        with torch.no_grad():
            return loop.update(k, point, grads, given)

    def _outer(self, k: int, point: Point) -> Tensor:
        loop, captured, name = self.loop, self.captured, ("outer", k)
        theta = [self._argument(p, k, captured is not None) for p in point[: loop.params]]
        with torch.set_grad_enabled(captured is not None):
            loss = self.replay(name, lambda: loop.outer(k, theta))
            if captured is not None:
                captured.look(loss.sum(), k, lambda: self.replay(name, lambda: loop.outer(k, theta)), twice=False)
        return loss.detach()

    def _argument(self, x: Tensor, k: int, wants_gradient: bool) -> Tensor:
        return leaf(x, wants_gradient) if self.captured is None else self.captured.argument(x, k, wants_gradient)


class Back(Way):
    """The way back; `others`: what the losses close over, or what stands in for it."""

    def __init__(
        self, loop: Loop, items: Sequence[Tensor], replay: Replay, others: Sequence[Tensor], standing: Standing | None
    ) -> None:
        super().__init__(loop, items, replay)
        self.others, self.standing = others, standing
        self.found: list[Tensor | None] = [None] * (len(items) + len(others))

    def run(self, kept: dict[int, Point], v: Sequence[Tensor | None], dlosses: dict[int, Tensor]) -> None:
        """Fills `found` with the gradients; v: those of the last parameters and state, dlosses of the losses that count."""
        after = kept.get(self.loop.steps)
        for steps in segments(self.loop):
            points = [kept[steps[0]]]
            for k in steps[:-1]:
                points.append(self.step(k, points[-1]))
            for k in reversed(steps):
                if k in dlosses:
                    assert after is not None
                    v = self._outer_back(k, after, v, dlosses[k])
                after = points.pop()
                if any(u is not None for u in v):
                    v = self._step_back(k, after, v)
        for i, u in enumerate(v):
            if u is not None:
                self._add(i, u)

    def _outer_back(self, k: int, point: Point, v: Sequence[Tensor | None], dloss: Tensor) -> list[Tensor | None]:
        n = self.loop.params
        theta = [leaf(p, True) for p in point[:n]]
        with torch.enable_grad():
            loss = self.replay(("outer", k), lambda: self.loop.outer(k, theta))
            self._check(loss)
        found = gradients([loss], [*theta, *self.others], [dloss])
        self._add_others(found[n:])
        return [*(d if u is None else u + d for u, d in zip(v[:n], found[:n], strict=True)), *v[n:]]

    def _step_back(self, k: int, point: Point, v: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        loop = self.loop
        given = {slot: leaf(x, x.requires_grad) for slot, x in loop.at(k, self.items).items()}
        arguments = [leaf(x, True) for x in point]
        theta = arguments[: loop.params]
        with torch.enable_grad(), _modes(self.loop.first_order):
            total = self.replay(("step", k), lambda: loop.total(k, theta, given))
            self._check(total)
            grads = gradients([total], theta, create_graph=not loop.first_order)
            if loop.first_order:
                grads = tuple(g.detach() for g in grads)
        dnext = [torch.zeros_like(x) if u is None else u for x, u in zip(point, v, strict=True)]
        direct = loop.pullback(k, point, [g.detach() for g in grads], given, dnext)
        slots = [x for x in (given if direct is None else loop.slots(k, "batch")) if given[x].requires_grad]
        others = [*(given[x] for x in slots), *self.others]
        if direct is None:
            with torch.enable_grad():
                following = loop.update(k, arguments, grads, given)
            found = gradients(following, [*arguments, *others], dnext)
            dpoint, of_others = [*found[: len(point)]], found[len(point) :]
        else:
            dpoint, dgrads, of_values = direct
            self._add_slots(k, [*of_values], [*of_values.values()])
            found = gradients(grads, [*theta, *others], dgrads)
            dpoint[: len(theta)] = foreach_add(found[: len(theta)], dpoint[: len(theta)])
            of_others = found[len(theta) :]
        self._add_slots(k, slots, of_others[: len(slots)])
        self._add_others(of_others[len(slots) :])
        return dpoint

    def _check(self, total: Tensor) -> None:
        if self.standing is not None:
            self.standing.check([total])

    def _add(self, place: int, gradient: Tensor) -> None:
        before = self.found[place]
        self.found[place] = gradient if before is None else before + gradient

    def _add_others(self, found: Sequence[Tensor]) -> None:
        for i, gradient in enumerate(found):
            self._add(len(self.items) + i, gradient)

    def _add_slots(self, k: int, slots: Sequence[Slot], found: Sequence[Tensor]) -> None:
        for slot, gradient in zip(slots, found, strict=True):
            if not slot.per_step:
                self._add(slot.place, gradient)
                continue
            if self.found[slot.place] is None:
                self.found[slot.place] = torch.zeros_like(self.items[slot.place])
            whole = self.found[slot.place]
            assert whole is not None
            whole[k] += gradient


def unrolled(loop: Loop, items: Sequence[Tensor], replay: Replay | None = None) -> list[Tensor]:
    """The results on one graph over all steps, with derivatives of every order, by autograd or torch.func."""
    run = replay or (lambda _, function: function())
    point, losses = list(items[: loop.moving]), []
    with _modes(), ExactNorms():
        for k in range(loop.steps):
            given = loop.at(k, items)
            grads = _gradients(loop, k, point[: loop.params], given, run)
            point = loop.update(k, point, grads, given)
            if loop.outers and loop.outers[k] is not None:
                losses.append(run(("outer", k), partial(loop.outer, k, point[: loop.params])))
    return [*losses, *point[loop.params :]] if loop.outers else point


def _gradients(
    loop: Loop, k: int, theta: Sequence[Tensor], given: Mapping[Slot, Tensor], run: Callable[..., Tensor]
) -> Sequence[Tensor]:
    """Those of step k, on the graph unless they count as constants."""
    if is_functional() or torch.compiler.is_compiling():
        grads: Sequence[Tensor] = torch.func.grad(lambda p: loop.total(k, p, given))(tuple(theta))
    else:
        theta = [p if p.requires_grad else leaf(p, True) for p in theta]
        total = run(("step", k), partial(loop.total, k, theta, given))
        grads = gradients([total], theta, create_graph=not loop.first_order)
    return [g.detach() for g in grads] if loop.first_order else grads


def _modes(first_order: bool = False) -> AbstractContextManager[None]:
    return nullcontext() if first_order else twice_differentiable()


class Unrolled(torch.autograd.Function):
    """The results, on a graph that reaches the items and what the losses close over."""

    @staticmethod
    def forward(
        ctx: Any, loop: Loop, replay: Replay, results: list[Tensor], kept: list[Tensor], count: int, *inputs: Tensor
    ) -> Any:
        ctx.loop, ctx.replay, ctx.count, ctx.captured = loop, replay, count, inputs[count:]
        ctx.autocast = autocast_of(inputs[0])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *kept)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        saved = list(ctx.saved_tensors)  # once: a checkpoint recomputes at every access
        items, needs = saved[: ctx.count], ctx.needs_input_grad[5:]
        noise = noise_of(items[0])
        with without_cache(ctx.autocast):
            if torch.is_grad_enabled():
                found = _with_graph(ctx, items, cotangents)
            else:
                found = _by_steps(ctx, items, saved[ctx.count + len(ctx.captured) :], cotangents)
        restore(noise)
        _, dtype, enabled = ctx.autocast
        ctx.replay.compare(dtype if enabled else items[0].dtype)
        inputs = [*items, *ctx.captured]
        found = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
        return *[None] * 5, *(g if need else None for g, need in zip(found, needs, strict=True))


def _by_steps(
    ctx: Any, items: list[Tensor], points: list[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    loop: Loop = ctx.loop
    kept = {0: [x.detach() for x in items[: loop.moving]]}
    kept |= dict(zip(loop.kept, map(list, zip(*(x.unbind() for x in points), strict=True)), strict=True))
    standing, others = None, ctx.captured
    if must_stand_in(ctx.captured):
        others = [leaf(x, True) for x in ctx.captured]
        standing = Standing(ctx.captured, others)
    back = Back(loop, items, ctx.replay, others, standing)
    counted = loop.counted()
    dlosses = {k: d for k, d in zip(counted, cotangents, strict=False) if d is not None}
    v = [*[None] * loop.params, *cotangents[len(counted) :]] if loop.outers else cotangents
    with around(others), standing or nullcontext():
        back.run(kept, v, dlosses)
    return back.found


def _with_graph(ctx: Any, items: list[Tensor], cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients with a graph of their own, from a graph over all steps."""
    fresh = [x.view_as(x) if x.requires_grad else x for x in items]  # none depends on another
    standing, others = None, list(ctx.captured)
    if must_stand_in(others, items):
        others = [x.view_as(x) for x in others]
        standing = Standing(ctx.captured, others)
    with around(others), standing or nullcontext():
        results = unrolled(ctx.loop, fresh, ctx.replay)
    wanted = [*(x for x in fresh if x.requires_grad), *others]
    pairs = [(y, d) for y, d in zip(results, cotangents, strict=True) if d is not None]
    if standing is not None:
        standing.check([y for y, _ in pairs], fresh)
    found = gradients([y for y, _ in pairs], wanted, [d for _, d in pairs], create_graph=True)
    return scatter(found, [x.requires_grad for x in (*fresh, *others)])


Autocast = tuple[str, torch.dtype, bool]


def autocast_of(like: Tensor) -> Autocast:
    """Whether autocast is on where `like` lies, and its dtype."""
    device = like.device.type
    return device, torch.get_autocast_dtype(device), is_autocast(device)


def without_cache(autocast: Autocast) -> AbstractContextManager[Any]:
    """Autocast that casts a parameter anew in every step: what it keeps would hold graphs, of this loop or of before."""
    device, dtype, enabled = autocast
    return torch.autocast(device, dtype, enabled, cache_enabled=False) if enabled else nullcontext()
