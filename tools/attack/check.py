"""A function's values and derivatives against its formula's: odd inputs and settings, by autograd."""

import contextlib

import numpy as np
import torch
from torch import nn

import fastmeta

from . import draw as drawn
from .subject import Finding, Refused, describe, exact, first_line, says_what
from .tolerance import Rounding, compare, moved

try:
    from fastmeta import _C as native
except ImportError:
    native = None

LIMITS = ("must be able to run on",)  # that the documentation names


def derivatives(fn, tensors, needs, order, seed):
    """The outputs, the gradients to the tensors that are needed of a random contraction of them, and so on."""
    found, wrt = [fn(*tensors)], [x for x, need in zip(tensors, needs, strict=True) if need]
    for level in range(order):
        numbers = np.random.default_rng(seed + level)
        drawn_for = [torch.as_tensor(numbers.standard_normal(y.shape, dtype=np.float32)) for y in found[-1]]
        total = sum(
            ((y.double() * c.double()).sum() for y, c in zip(found[-1], drawn_for, strict=True)), torch.zeros(())
        )
        options = {"create_graph": level + 1 < order, "allow_unused": True, "materialize_grads": True}
        grads = torch.autograd.grad(total, wrt, **options) if total.requires_grad else map(torch.zeros_like, wrt)
        found.append(list(grads))
    return found


def check(draw, p):
    dtype = p.dtype or (torch.float64 if draw.odd("float64", 0.4) else torch.float32)
    order = draw.order(min(p.max_order, 1 if "big" in draw.seen else 3))
    tensors, needs = _inputs(draw, p, dtype, order)
    labels = {n: drawn.view(draw, y, draw.pick("label view", drawn.VIEWS[:3])) for n, y in p.labels.items()}
    seed, backend = draw.random("cotangents").getrandbits(30), _backend(draw, p, tensors)
    draw.note(f"{backend}, {str(dtype)[6:]}, order {order}; {', '.join(map(describe, tensors))}")
    before = [exact(x) for x in tensors]

    def function(*values):
        return p.run(p.function, values, labels)

    with _settings(draw, backend):
        try:
            got = derivatives(function, tensors, needs, order, seed)
            again = function(*tensors) if draw.odd("again", 0.1) else got[0]
        except Exception as error:
            raise _judged(p, error, all(bool(x.isfinite().all()) for x in before)) from error
    if not all(same(*pair) for pair in zip(got[0], again, strict=True)):
        raise Finding("the same call gives other bits", "")
    for x, old in zip(tensors, before, strict=True):
        if not same(exact(x), old):
            raise Finding("an input is written to", describe(x))

    def formula(values):
        leaves = [x.clone().requires_grad_(need) for x, need in zip(values, needs, strict=True)]
        return derivatives(lambda *v: p.run(p.formula, v, p.labels), leaves, needs, order, seed)

    _against(p, got, formula, before, dtype)


def same(a, b):
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _against(p, got, formula, before, dtype):
    others = []

    def own(place, i):
        """What the formula gives in float32, and with its steps moved by roundings."""
        if not others:
            others.append(formula([x.to(torch.float32) for x in before]))
            for turn in (1, 2):
                with Rounding(dtype, turn):
                    others.append(formula([moved(x, dtype, turn) for x in before]))
        return [o[place][i].detach().double() for o in others]

    want = formula(before)
    for place, (ours, truth) in enumerate(zip(got, want, strict=True)):
        if len(ours) != len(truth):
            raise Finding("another number of outputs", f"{len(ours)} for {len(truth)}")
        for i, (x, y) in enumerate(zip(ours, truth, strict=True)):
            compare(
                f"order {place}", x, y.detach().double(), lambda place=place, i=i: own(place, i), before, p.differences
            )


def _inputs(draw, p, dtype, order):
    """The tensors as a user might have them, and which are differentiated; a learner's parameters as they are."""
    needs = [not draw.odd("needs", 0.2) for _ in p.tensors]
    needs = needs if any(needs) or not order else [True] * len(needs)
    wild = (
        draw.pick("wild tensor", range(len(needs))) if p.dtype is None and order < 2 and draw.odd("wild", 0.07) else -1
    )
    made = []
    for i, x in enumerate(p.tensors):
        if isinstance(x, nn.Parameter):
            needs[i] = x.requires_grad
            made.append(x)
            continue
        values = None
        if i == wild:
            values = "nan" if p.kinks else draw.pick("wild", drawn.WILD)
        elif x.ndim and not p.kinks and draw.odd("values", 0.12):
            values = draw.pick("values", drawn.TAME)
            if p.dtype and values == "offset":
                values = "ties"  # in an inner loop 1e3 loses nine digits, by the formula and by fastmeta alike
        kind = draw.pick("view", drawn.VIEWS) if draw.odd("views", 0.3) else "plain"
        if kind in drawn.EQUAL and p.kinks:
            kind = "strided"
        if p.dtype and (kind == "parameter" or (x.ndim == 1 and kind == "strided")):
            kind = (
                "offset"  # a learner does not adapt a frozen parameter; torch's batch norm reads such a weight wrongly
            )
        draw.notes += [word for word in (values, kind) if word not in (None, "plain")]
        if values and x.numel() != 1:  # one number is perhaps a temperature
            x = drawn.values(draw, x, values, dtype)
        made.append(drawn.as_input(draw, x.to(dtype), kind, needs[i]))
    return made, needs


def _backend(draw, p, tensors):
    choice = draw.pick("backend", p.backends)
    if choice == "triton" and (sum(x.numel() for x in tensors) > 1500 or draw.odd("seldom", 0.7)):
        choice = "auto"  # its interpreter is slow
    return "auto" if native is None and choice == "ext" else choice


@contextlib.contextmanager
def _settings(draw, backend):
    """Backend, instruction set and threads for the body."""
    usual, threads = native and native.isa(), torch.get_num_threads()
    if native and draw.odd("isa", 0.3):
        native.set_isa(draw.pick("isa", native.isas()))
    torch.set_num_threads(draw.pick("threads", (2, 3)) if draw.odd("threads", 0.15) else 1)
    try:
        with fastmeta.backend(backend):
            yield
    finally:
        torch.set_num_threads(threads)
        if native:
            native.set_isa(usual)


def _judged(p, error, finite):
    """A limit that the documentation allows, or a finding."""
    limits = LIMITS if finite else (*LIMITS, "must be finite")  # a rate
    if says_what(p.name, error) and any(limit in str(error) for limit in limits):
        return Refused(first_line(error))
    return Finding(f"raises {first_line(error)}", str(error)[:600])
