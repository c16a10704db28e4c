"""Whole meta-iterations: draw new tasks, the gradients of their loss, a step of Adam. The problems, as they are drawn in plain PyTorch
and by fastmeta.data, and the loop around any way."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastmeta import optim
from fastmeta.data import Glyphs, Sinusoid, TaskSampler, sample_episodes

WAYS, SHOTS, QUERIES = 5, 1, 5  # of glyphs
POINTS = 10  # of a sinusoid's support, and of its query


class Problem(NamedTuple):
    """`draw()` -> support_x, support_y, query_x, query_y. `chunk`: meta-batches that fastmeta draws at once."""

    tasks: int
    lr: float  # of Adam
    chunk: int
    draw: Callable
    sampler: TaskSampler
    images: torch.Tensor | None = None

    def batch(self):
        """Some tasks in torch's default dtype."""
        return [z.to(torch.get_default_dtype()) if z.is_floating_point() else z for z in self.draw()]


def sinusoids(tasks=25, lr=1e-3, chunk=64):
    def draw():
        amplitude, phase = 0.1 + 4.9 * torch.rand(tasks, 1, 1), math.pi * torch.rand(tasks, 1, 1)
        x = 10 * torch.rand(tasks, 2 * POINTS, 1) - 5
        y = amplitude * torch.sin(x - phase)
        return x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:]

    sampler = TaskSampler(lambda count, g: Sinusoid().sample(count, POINTS, POINTS, generator=g), tasks)
    return Problem(tasks, lr, chunk, draw, sampler)


def glyphs(images, tasks, lr, chunk):
    """5-way 1-shot tasks of `images` [classes, examples, ...]."""

    def draw():
        classes, examples = images.shape[:2]
        chosen = torch.rand(tasks, classes).argsort(-1)[:, :WAYS, None]
        shown = torch.rand(tasks, WAYS, examples).argsort(-1)[..., : SHOTS + QUERIES]
        x = images[chosen, shown].float() / 255  # [T, N, K + Q', ...]
        labels = torch.arange(WAYS)
        support_y, query_y = (labels.repeat_interleave(n).repeat(tasks, 1) for n in (SHOTS, QUERIES))
        return x[:, :, :SHOTS].flatten(1, 2), support_y, x[:, :, SHOTS:].flatten(1, 2), query_y

    def of_fastmeta(count, generator):
        return sample_episodes(images, count, WAYS, SHOTS, QUERIES, generator=generator)

    return Problem(tasks, lr, chunk, draw, TaskSampler(of_fastmeta, tasks), images)


@functools.cache
def letters():
    """The demo's, uint8 [classes, 20, 1, 28, 28]."""
    return Glyphs("train").images


@functools.cache
def halved():
    """The same [classes, 20, 196], for MLPs."""
    images = letters()
    return F.avg_pool2d(images.flatten(0, 1).float(), 2).round().to(torch.uint8).view(*images.shape[:2], -1)


class Training:
    """A call is a meta-iteration: tasks of `draw`, `backward(tasks)`, which adds to the parameters' .grad and gives the loss, and Adam.

    `results`: the loss of the first parameters on `batch`, and its gradients. `period`: meta-batches that are drawn at once.
    """

    def __init__(self, draw, backward, params, lr, batch, period=1, adam=None):
        self.draw, self.backward, self.params, self.batch, self.period = draw, backward, params, batch, period
        self.first = [p.detach().clone() for p in params]
        self.optimiser = adam(params, lr) if adam else torch.optim.Adam(params, lr, fused=True)

    def __call__(self):
        self.optimiser.zero_grad()
        self.backward(self.draw())
        self.optimiser.step()

    def results(self):
        with torch.no_grad():
            for p, first in zip(self.params, self.first, strict=True):
                p.copy_(first)
        self.optimiser.zero_grad()
        loss = self.backward(self.batch)
        return loss.detach(), *(p.grad for p in self.params)

    def trained(self):
        """Whether every parameter has moved, and none to infinity."""
        return have_moved(self.first, self.params)


def have_moved(before, after):
    return all(bool(b.isfinite().all()) and not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def by_learner(learner, problem, batch):
    """Ours."""
    batches = problem.sampler.batches(problem.chunk)
    params = list(learner.parameters())
    return Training(
        lambda: next(batches),
        lambda tasks: learner.backward(*tasks).mean(),
        params,
        problem.lr,
        batch,
        problem.chunk,
        optim.Adam,
    )


def by_autograd(loss, params, problem, batch):
    """`loss` of the tasks is made of operations of torch."""

    def backward(tasks):
        value = loss(*tasks)
        value.backward()
        return value

    return Training(problem.draw, backward, params, problem.lr, batch)


def by_gradients(fn, params, problem, batch):
    """`fn(params, *tasks)` -> gradients, loss."""

    def backward(tasks):
        gradients, value = fn([p.detach() for p in params], *tasks)
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient
        return value

    return Training(problem.draw, backward, params, problem.lr, batch)
