"""Everything a case draws, from its token `SEED[-oddity]...[@cap]`; sizes, odd values, and odd views of tensors."""

import random
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

LEADS = {(): 4, (1,): 1, (2,): 4, (3,): 2, (5,): 1, (2, 2): 1.5, (0,): 0.7}
COUNTS = (0, 1, 1, 2, 3, 3, 5, 7, 13)
TAME = {"offset": 3, "ties": 2, "outliers": 2, "coincident": 2, "tiny": 2, "denormal": 1, "zeros": 1}
WILD = {"nan": 2, "inf": 1, "overflow": 2}
EQUAL = ("expanded", "overlap")  # views with equal numbers
VIEWS = ("strided", "transposed", "offset", "neg", "flipped", *EQUAL, "computed", "parameter", "subclass")


class Draw:
    """Each name has its own sequence of numbers, so that leaving an oddity out changes nothing else."""

    def __init__(self, token):
        head, _, cap = token.partition("@")
        seed, *without = head.split("-")
        self.seed, self.without, self.cap = int(seed), frozenset(without), int(cap or 2**40)
        self.seen = []  # oddities, which shrinking may leave out
        self.notes = []  # the case in words
        self._drawn = Counter()

    def random(self, name):
        self._drawn[name] += 1
        return random.Random(f"{self.seed}/{name}/{self._drawn[name]}")

    def odd(self, name, chance):
        """Whether an oddity is there."""
        if self.random(name).random() >= chance or name in self.without:
            return False
        if name not in self.seen:
            self.seen.append(name)
        return True

    def pick(self, name, options):
        """One of a sequence, or of a mapping to weights."""
        if isinstance(options, Mapping):
            return self.random(name).choices(list(options), list(options.values()))[0]
        return self.random(name).choice(options)

    def size(self, name, options):
        return min(self.pick(name, options), self.cap)

    def big(self, small, *options):
        """Over the blocks of a kernel, now and then."""
        return self.size("big size", options) if self.odd("big", 0.06) else small

    def lead(self):
        """The batch dimensions of the tasks."""
        return tuple(min(n, self.cap) for n in self.pick("lead", LEADS))

    def own(self, lead):
        """Those of one argument: all, or none, so that the tasks share it."""
        return () if lead and self.odd("shared", 0.3) else lead

    def order(self, most):
        """Of the derivatives; leaving `order3` out gives the second."""
        order = min(self.pick("order", {0: 3, 1: 5, 2: 3, 3: 2}), most)
        while order and f"order{order}" in self.without:
            order -= 1
        self.seen += [f"order{order}"] if order else []
        return order

    def note(self, text):
        self.notes.append(text)

    def generator(self, name):
        return torch.Generator().manual_seed(self.random(name).getrandbits(40))

    def randn(self, *shape):
        return torch.randn(shape, generator=self.generator("randn"), dtype=torch.float64)

    def labels(self, classes, *shape):
        return torch.randint(max(classes, 1), shape, generator=self.generator("labels"))

    def covering(self, classes, *shape):
        """Labels [..., S] with every class, in random order."""
        return torch.rand(shape, generator=self.generator("labels")).argsort(-1).remainder(classes)

    def ignoring(self, y, chance, index=-100):
        """Now and then some labels are ignored."""
        gone = self.odd("ignored", chance) and self.labels(self.pick("ignored", (1, 2, 4)), *y.shape) == 0
        return y if gone is False else torch.where(gone, index, y)


class Subclass(Tensor):
    """A tensor of another type."""


def values(draw, x, kind, dtype):
    """float64 values of one kind, that `dtype` can hold."""
    if not x.numel():
        return x
    spots = torch.rand(x.shape, generator=draw.generator("spots")) < 1 / min(x.numel(), 8)
    limits = torch.finfo(dtype)
    if kind == "coincident":
        return x.reshape(-1, x.shape[-1])[:1].repeat(x.numel() // x.shape[-1], 1).reshape(x.shape) if x.ndim else x
    whole = {"offset": x + 1e3, "ties": x.round(), "tiny": x * 1e-6, "denormal": x * limits.tiny / 8, "zeros": x * 0}
    if kind in whole:
        return whole[kind]
    spot = {"outliers": 1e4 * x, "nan": torch.nan, "inf": torch.inf, "overflow": x * limits.max**0.5 * 4}[kind]
    return torch.where(spots, torch.as_tensor(spot, dtype=x.dtype), x)


def view(draw, x, kind):
    """A tensor with the values of x, or some of them repeated, that lies in memory as `kind` says."""
    if kind == "strided":
        return torch.stack([x * torch.nan if x.is_floating_point() else x, x, x], -1)[..., 1]
    if kind == "transposed" and x.ndim >= 2:
        order = list(range(x.ndim))
        draw.random("transposed").shuffle(order)
        return x.permute(order).contiguous().permute([order.index(i) for i in range(x.ndim)])
    if kind == "offset":
        return torch.cat([x.new_ones(1), x.flatten()])[1:].view(x.shape)
    if kind == "expanded" and x.ndim and x.numel():
        return x.narrow(draw.pick("axis", range(x.ndim)), 0, 1).expand(x.shape)
    if kind == "overlap" and x.ndim >= 2 and x.numel():
        return x.flatten()[: sum(n - 1 for n in x.shape) + 1].clone().as_strided(x.shape, [1] * x.ndim)
    if kind == "neg" and x.is_floating_point():
        return torch.complex(torch.zeros_like(x), -x).conj().imag
    return x.flip(-1).contiguous().flip(-1) if kind == "flipped" and x.ndim else x


def as_input(draw, x, kind, needs):
    """`view`, as a leaf, a parameter, a subclass, or the result of a computation."""
    if kind == "computed" and needs:
        return x.clone().requires_grad_() * 1
    x = view(draw, x, kind)
    if kind == "parameter":
        return nn.Parameter(x.clone(), requires_grad=needs)
    if kind == "subclass":
        x = x.as_subclass(Subclass)
    if kind in ("strided", "neg", "transposed") and needs and draw.odd("nonleaf", 0.3):
        return view(draw, x.clone().requires_grad_(), kind)
    return x.detach().requires_grad_(needs)
