"""What transforms run on, an op's case or a learner's loss, and what they have to give: central differences of plain values and
plain gradients, or loops of plain autograd, on the reference in float64."""

import copy
import functools

import torch
from torch.func import grad

import fastmeta
from harness.cases import BACKENDS, LIKE_OTHERS, VARIANTS, case
from harness.compare import outputs
from harness.learner_cases import LEARNERS, learner_case

OPS = [*BACKENDS, *(name for name in VARIANTS if name not in LIKE_OTHERS)]
SUBJECTS = [*OPS, *LEARNERS]
OWN_KIND = ("IMAML", "Reptile")  # their gradient is none of the loss's value
STEP = 1e-5  # of the central differences
OPTIONS = {"allow_unused": True, "materialize_grads": True}


class Subject:
    """`fn(*tensors)` gives a tensor or a tuple of tensors, `scalar(*tensors)` one number; `loss`: a learner's, as a module."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.name = name
        c = case(name) if name in OPS else learner_case(name)
        self.fn, self.tensors = c.fn, tuple(c.tensors)
        self.loss, self.labels = getattr(c, "loss", None), getattr(c, "labels", None)
        self.every = tuple(range(len(self.tensors)))  # all places
        self.tangents = tuple(torch.randn_like(t) for t in self.tensors)
        self.moved = [
            tuple(t + by * v for t, v in zip(self.tensors, self.tangents, strict=True)) for by in (0, 0.1, -0.2)
        ]
        self.stacked = tuple(map(torch.stack, zip(*self.moved, strict=True)))

    def outputs(self, *tensors):
        return outputs(self.fn(*tensors))

    def scalar(self, *tensors):
        return sum(y.sin().sum() for y in self.outputs(*tensors))

    def first(self, *tensors):
        """The first output, flat."""
        return self.outputs(*tensors)[0].reshape(-1)

    @functools.cached_property
    def gradient(self):
        return grad(self.scalar, self.every)


def leaves(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def gradients(f, tensors, **options):
    """Plain autograd."""
    inputs = leaves(tensors)
    return torch.autograd.grad(f(*inputs), inputs, **OPTIONS, **options)


def dot(a, b):
    return sum((x * y).sum() for x, y in zip(a, b, strict=True))


def stack(rows):
    return tuple(map(torch.stack, zip(*rows, strict=True)))


# What a transform has to give.


def of_values(s):
    return s.outputs(*s.tensors)


def of_gradients(s):
    return gradients(s.scalar, s.tensors)


def of_stacked_gradients(s):
    return stack(gradients(s.scalar, t) for t in s.moved)


def of_slope(s):
    """The derivative of the scalar along the tangents."""
    return ((s.scalar(*shifted(s, STEP)) - s.scalar(*shifted(s, -STEP))) / (2 * STEP),)


def of_gradient(s):
    """The gradient's part along the tangents."""
    return (dot(of_gradients(s), s.tangents),) if s.name in OWN_KIND else of_slope(s)


def of_products(s):
    """H v, v the tangents."""
    ahead, behind = (gradients(s.scalar, shifted(s, by)) for by in (STEP, -STEP))
    return tuple((a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True))


def of_hessian(s):
    """In the first tensor."""
    x, *others = s.tensors
    rows = []
    for unit in torch.eye(x.numel(), dtype=x.dtype):
        ends = [gradients(s.scalar, (x + by * unit.reshape(x.shape), *others))[0] for by in (STEP, -STEP)]
        rows.append((ends[0] - ends[1]) / (2 * STEP))
    return (torch.stack(rows).reshape((*x.shape, *x.shape)),)


def of_jacobian(s):
    inputs = leaves(s.tensors)
    return stack(torch.autograd.grad(y, inputs, retain_graph=True, **OPTIONS) for y in s.first(*inputs).unbind())


def shifted(s, by):
    return [t + by * v for t, v in zip(s.tensors, s.tangents, strict=True)]


def in_turn(s):
    """The places of all tensors; of a learner's, every third."""
    return s.every[:: 3 if s.loss else 1]


def of_one_in_turn(s):
    found = []
    for i in in_turn(s):
        rows = [[t[i] if j == i else s.tensors[j] for j in s.every] for t in s.moved]
        found += stack(s.outputs(*row) for row in rows)
    return found


def of_own_parameters(s):
    """The learner that has these values as its own parameters."""
    *values, sx, qx = s.moved[1]
    own = copy.deepcopy(s.loss)
    with torch.no_grad():
        for p, value in zip(own.parameters(), values, strict=True):
            p.copy_(value)
    return outputs(own(sx, s.labels[0], qx, s.labels[1]))


def of_ensemble(s):
    return stack(gradients(s.scalar, (*t[:-2], *s.tensors[-2:]))[:-2] for t in s.moved)


@functools.cache
def subject(name):
    return Subject(name)


@functools.cache
def truth(name, of):
    with fastmeta.backend("reference"):
        return [x.detach() for x in outputs(of(subject(name)))]
