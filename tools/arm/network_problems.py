"""The inner loops' problems for driver.cpp: every function of a network, with every gradient that its kernel writes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from arm.saved import Pair, Saved, per_task
from fastmeta.reference import conv_forward
from harness import conv_cases, mlp_cases
from harness.mlp_cases import ACTIVATIONS, LOSSES, Problem

Flat = Sequence[Tensor]


class Network:
    """A problem's functions of one task. Their leaves: parameters, rates where there are some, and x and y of one batch or two."""

    def __init__(self, saved: Saved, p: Problem, kind: str, steps: int, first_order: bool) -> None:
        self.saved, self.p, self.kind = saved, p, kind
        self.loop = {"steps": steps, "first_order": first_order} | p.options()
        T, n = p.x.shape[:2]
        self.params = [w.expand(T, *w.shape) if p.shared else w for w in p.flat]
        self.rates = [r.expand(T, *r.shape) for r in p.rates(kind, steps)]
        self.support, self.query = [p.x, p.y], [p.like_x(n + 2), p.targets(n + 2)]
        self.count, self.first = len(self.params), len(self.params) + len(self.rates)  # where rates begin, where x does

    def both(self, fn: Callable, leaves: Flat, cotangents: Flat = ()) -> list[Pair]:
        return self.saved.both(per_task(fn, len(leaves)), [*leaves, *cotangents])

    def batches(self, leaves: Flat) -> list[Tensor]:
        return [x.long() if i % 2 and self.p.loss == "cross_entropy" else x for i, x in enumerate(leaves)]

    def lr(self, leaves: Flat):
        return self.p.lr(self.kind, leaves[self.count : self.first])

    def forward(self, *leaves: Tensor) -> Tensor:
        return self.p.op("forward")(self.p.tree(leaves), leaves[-1], **self.p.of_network())

    def loss(self, *leaves: Tensor) -> Tensor:
        return self.p.op("loss")(self.p.tree(leaves), *self.batches(leaves[self.count :]), **self.p.options())

    def derivative(self, *leaves: Tensor) -> Tensor:
        """dloss loss + <v, dloss / dparams>; v and dloss are the last leaves."""
        *vectors, dloss = leaves[self.count + 2 :]
        loss = self.loss(*leaves[: self.count + 2])
        grads = torch.autograd.grad(loss, leaves[: self.count], create_graph=True)
        return dloss * loss + sum((v * g).sum() for v, g in zip(vectors, grads, strict=True))

    def gauss_newton(self, *leaves: Tensor) -> list[Tensor | None]:
        params, vectors = self.p.tree(leaves), self.p.tree(leaves[self.count + 2 :])
        batch = self.batches(leaves[self.count : self.count + 2])
        return self.p.op("hvp")(params, vectors, *batch, curvature="ggn", **self.p.options())

    def adapt(self, *leaves: Tensor) -> list[Tensor | None]:
        batch = self.batches(leaves[self.first :])
        return self.p.op("adapt")(self.p.tree(leaves), self.lr(leaves), *batch, **self.loop)

    def outputs(self, *leaves: Tensor) -> Tensor:
        return self.p.op("forward")(self.adapt(*leaves[:-2]), leaves[-2], **self.p.of_network())

    def meta_loss(self, *leaves: Tensor) -> Tensor:
        batches = self.batches(leaves[self.first :])
        return self.p.op("meta_loss")(self.p.tree(leaves), self.lr(leaves), *batches, **self.loop)

    def gradients(self, pairs: Sequence[Pair], first: int) -> None:
        """To the leaves; from `first` on to x and y of batches. Labels have none."""
        rates = pairs[self.count : first]
        self.saved.results(*self.p.tree(pairs), *(rates if len(rates) == 1 else self.p.tree(rates) if rates else ()))
        labels = self.p.loss == "cross_entropy"
        self.saved.results(*(None if i % 2 and labels else x for i, x in enumerate(pairs[first:])))

    def write(self) -> None:
        """In the order of network() in driver.cpp."""
        saved, p, count = self.saved, self.p, self.count
        randn_like = [saved.randn(*w.shape) for w in self.params]
        saved.numbers(p.shared)
        saved.arrays(*p.tree(p.flat))
        for x, y in (self.support, self.query):
            saved.numbers(x.shape[1])
            saved.arrays(x, y)
        support = [x.to(saved.dtype) for x in self.support]
        query = [x.to(saved.dtype) for x in self.query]

        cotangent = saved.randn(*support[0].shape[:2], p.params[-2].shape[-2])
        out, *grads = self.both(self.forward, [*self.params, support[0]], [cotangent])
        saved.results(out)
        saved.arrays(cotangent)
        self.gradients(grads, count)

        loss, *grads = self.both(self.loss, [*self.params, *support])
        saved.results(loss)
        self.gradients(grads, count)

        dloss = saved.randn(len(support[0]))
        saved.arrays(*p.tree(randn_like), dloss)
        leaves = [*self.params, *support, *randn_like]
        self.gradients(self.both(self.derivative, [*leaves, dloss])[1 : count + 3], count)
        saved.results(*p.tree(self.both(self.gauss_newton, leaves)))

        saved.numbers(self.loop["steps"], self.loop["first_order"])
        saved.numbers(len(self.rates) == 1, "element" in self.kind, "step" in self.kind)
        rates = [r[0] for r in self.rates]
        saved.arrays(*(rates if len(rates) == 1 else p.tree(rates)))
        leaves = [*self.params, *self.rates, *support]
        pairs = self.both(self.adapt, leaves, randn_like)
        saved.results(*p.tree(pairs))
        saved.arrays(*p.tree(randn_like))
        self.gradients(pairs[count:], self.first)

        leaves += query
        loss, *grads = self.both(self.meta_loss, leaves)
        saved.results(loss, self.both(self.outputs, leaves)[0])
        self.gradients(grads, self.first)


def write_blocks(saved: Saved, p: conv_cases.ConvNet, outputs: int) -> None:
    saved.numbers(len(p.blocks), outputs)
    read, handed_on = [], p.x.shape[2:]
    for i, b in enumerate(p.blocks):
        channels, height, width = read[i - b.skip] if b.skip else handed_on
        read.append((channels, height, width))
        out = p.params[4 * i].shape[-4]
        norm, groups = (2, b.norm) if isinstance(b.norm, int) else (b.norm == "batch", out)
        saved.numbers(channels, height, width, out, b.stride, b.padding, groups, b.pool, b.kernel, b.skip)
        saved.numbers(norm, b.relu, b.eps, b.slope)
        height, width = (((side + 2 * b.padding - b.kernel) // b.stride + 1) // b.pool for side in (height, width))
        handed_on = (out, height, width)


def begin(saved: Saved, p: Problem) -> None:
    saved.numbers(len(p.x), LOSSES.index(p.loss))


def mlp(
    saved: Saved, activation: str, widths: tuple, loss: str, kind: str, steps: int, shared: bool, first_order=False
) -> None:
    p = mlp_cases.problem(
        widths, 9, loss=loss, activation=activation, shared=shared, bias=kind != "per step", dtype=saved.dtype
    )
    begin(saved, p)
    saved.numbers(len(widths) - 1, ACTIVATIONS.index(activation), *widths)
    Network(saved, p, kind, steps, first_order).write()


def conv(saved: Saved, blocks: str, channels: int, loss: str, kind: str, shared: bool) -> None:
    p = conv_cases.problem(blocks, 4, channels=channels, size=11, T=2, loss=loss, shared=shared, dtype=saved.dtype)
    begin(saved, p)
    write_blocks(saved, p, 3)
    Network(saved, p, kind, 2, first_order=False).write()


def conv_features(saved: Saved, blocks: str, channels: int, with_nan: bool = False) -> None:
    """Batches longer than a run of images, which all threads would share."""
    p = conv_cases.problem(blocks, 35, channels=channels, size=9, T=2, shared=False, dtype=saved.dtype)
    p.params[-2:] = None, None
    if with_nan:
        p.x[0, 1, 0, 2, 2] = torch.nan
    begin(saved, p)
    write_blocks(saved, p, 0)
    saved.numbers(p.x.shape[1])
    saved.arrays(*p.params, p.x)

    def forward(*leaves: Tensor):
        found = conv_forward(p.tree(leaves), leaves[-1], p.blocks)
        return found if isinstance(found, tuple) else (found,)

    values = saved.both(forward, [*p.flat, p.x])
    cotangent = saved.randn(*values[0][0].shape)
    saved.results(*values, *([None] * (3 - len(values))))
    saved.arrays(cotangent)
    grads = saved.both(per_task(lambda *leaves: forward(*leaves)[0], len(p.flat) + 1), [*p.flat, p.x, cotangent])[1:]
    saved.results(*p.tree(grads), grads[-1])
