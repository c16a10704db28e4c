"""A token -> what came of its case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastmeta

from . import faults, files, odd
from .compare import Rounding, compare, moved
from .draw import NO_TABLE, Draw
from .learners import LEARNERS, learner
from .ops import OPS
from .problem import Finding, Problem, Refused, describe, exact, first_line, says_what
from .ways import WAYS, Setting

try:
    from fastmeta import _C as native
except ImportError:
    native = None

Case = Callable[[Draw], None]
TORCH_FAILS = {
    "compile": ("subclass",),
    "jvp": ("expanded", "overlap", "neg"),
    "linearize": ("expanded", "overlap", "neg", "subclass"),
}  # of itself


def check(draw: Draw, p: Problem) -> None:
    """The function's values and derivatives against its formula's."""
    dtype = p.dtype or _dtype(draw, p.widens)
    way, order = _way(draw, p, dtype)
    tensors, needs = _inputs(draw, p, dtype, way, order)
    labels = {name: odd.labels(draw, y) for name, y in p.labels.items()}
    setting = Setting(needs, order, draw.random("cotangents").getrandbits(30))
    backend = _backend(draw, p, dtype, tensors)
    autocast = dtype != torch.float64 and p.widens and way == "eager" and order < 2 and draw.odd("autocast", 0.1)
    draw.note(f"{backend}, {str(dtype)[6:]}, {way}, order {order}; {', '.join(map(describe, tensors))}")
    before = [exact(x) for x in tensors]

    def function(*values: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            return p.run(p.function, values, labels)

    with _settings(draw, backend):
        try:
            got = WAYS[way].take(function, tensors, setting)
            again = function(*tensors) if draw.odd("again", 0.1) and way == "eager" else got[0]
        except Exception as error:
            raise _judged(p, way, error, all(bool(x.isfinite().all()) for x in before)) from error
    if way == "eager" and not all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(got[0], again, strict=True)
    ):
        raise Finding("the same call gives other bits", "")
    for x, old in zip(tensors, before, strict=True):
        if not torch.equal(exact(x).nan_to_num(), old.nan_to_num()):
            raise Finding("an input is written to", describe(x))

    def formula(values: list[Tensor]) -> list[Any]:
        leaves = [x.clone().requires_grad_(need and order >= 0) for x, need in zip(values, needs, strict=True)]
        return WAYS[way].truth(lambda *v: p.run(p.formula, v, p.labels), leaves, setting)

    want = formula(before)
    others: list[Any] = []
    for place, (ours, truth) in enumerate(zip(got, want, strict=True)):
        if len(ours) != len(truth):
            raise Finding("another number of outputs", f"{len(ours)} for {len(truth)}")
        beside = max([0.0, *(float(y.detach().abs().nan_to_num().max()) for y in truth if y.numel())])
        for i, (x, y) in enumerate(zip(ours, truth, strict=True)):

            def own(place: int = place, i: int = i) -> list[Tensor]:
                if not others:
                    single = formula([x.to(torch.float32) for x in before])
                    others.append(single)
                    for turn in (1, 2):
                        with Rounding(dtype, turn):
                            others.append(formula([moved(x, dtype, turn) for x in before]))
                return [o[place][i].detach().double() for o in others]

            what = f"order {place}" if len(want) > 1 else f"the result by {way}"
            compare(what, x, y.detach().double(), own, before, p.differences, beside)


def _dtype(draw: Draw, widens: bool) -> torch.dtype:
    for low in (torch.float16, torch.bfloat16):
        if widens and draw.odd(str(low)[6:], 0.05):
            return low
    return torch.float64 if draw.odd("float64", 0.4) else torch.float32


def _way(draw: Draw, p: Problem, dtype: torch.dtype) -> tuple[str, int]:
    """How the derivatives are taken, and of which order."""
    ways = {"eager": 8, "grad": 1, "checkpoint": 0.3} if p.dtype else {n: w.weight for n, w in WAYS.items()}
    way = draw.pick("way", ways) if draw.odd("way", 1.0) else "eager"
    if way == "grad" and (p.name in ("IMAML", "Reptile") or (p.dtype and not draw.odd("functional", 0))):
        way = "eager"
    low = dtype in (torch.float16, torch.bfloat16)
    if low and WAYS[way].max_order:
        way = "eager"  # elsewhere more is rounded than the result
    most = min(WAYS[way].max_order, p.max_order, 1 if low or "big" in draw.seen else 3)
    return way, draw.order(most)


def _inputs(draw: Draw, p: Problem, dtype: torch.dtype, way: str, order: int) -> tuple[list[Tensor], list[bool]]:
    """The tensors as a user might have them, and which are differentiated; a learner's parameters as they are."""
    count = len(p.tensors)
    needs = [not draw.odd("needs", 0.2) for _ in range(count)]
    needs = needs if any(needs) or (way == "eager" and not order) else [True] * count
    wild = draw.pick("wild tensor", range(count)) if p.dtype is None and order < 2 and draw.odd("wild", 0.07) else -1
    made = []
    for i, x in enumerate(p.tensors):
        if isinstance(x, nn.Parameter):
            needs[i] = x.requires_grad
            made.append(x)
            continue
        if i == wild:
            kind = draw.pick("wild", odd.WILD)
            x = _valued(draw, x, "nan" if p.kinks else kind, dtype)
        elif x.ndim and not p.kinks and draw.odd("values", 0.12):
            kind = draw.pick("values", odd.TAME)
            if p.dtype and kind == "offset":
                kind = "ties"  # in an inner loop 1e3 loses nine digits, by the formula and by fastmeta alike
            x = _valued(draw, x, kind, dtype)
        kind = draw.pick("view", odd.VIEWS) if draw.odd("views", 0.3) else "plain"
        if kind in TORCH_FAILS.get(way, ()) or (kind in odd.EQUAL and p.kinks):
            kind = "strided"
        if kind == "parameter" and p.dtype and not needs[i]:
            kind = "strided"  # a learner does not adapt a frozen parameter
        if p.dtype and x.ndim == 1 and kind == "strided":
            kind = "offset"  # torch's batch norm reads such a weight wrongly in its backward
        draw.note(kind) if kind != "plain" else None
        positive = x.ndim == 0 or list(x.shape) == [1]  # perhaps a temperature
        made.append(odd.as_input(draw, (p.tensors[i] if positive else x).to(dtype), kind, needs[i]))
    return made, needs


def _valued(draw: Draw, x: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    draw.note(kind)
    return odd.values(draw, x, kind, dtype)


def _backend(draw: Draw, p: Problem, dtype: torch.dtype, tensors: list[Tensor]) -> str:
    choice = draw.pick("backend", p.backends)
    if choice == "triton" and (
        sum(x.numel() for x in tensors) > 1500 or dtype == torch.bfloat16 or draw.odd("seldom", 0.7)
    ):
        choice = "auto"  # its interpreter is slow, and wrong in bfloat16
    return "auto" if native is None and choice == "ext" else choice


@contextlib.contextmanager
def _settings(draw: Draw, backend: str) -> Any:
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


def _judged(p: Problem, way: str, error: Exception, finite: bool) -> Exception:
    """A limit that the documentation allows, or a finding."""
    text = str(error)
    limits = ("saved tensor hooks",)  # torch.func inside a checkpoint
    if says_what(p.name, error):
        limits = ("must be able to run on", "must run outside", "torch.jit.trace")
        limits = limits if finite else (*limits, "must be finite")  # a rate
    if any(limit in text for limit in limits):
        return Refused(first_line(error))
    return Finding(f"{way} raises {first_line(error)}", text[:600])


def problem(make: Callable[[Draw], Problem]) -> Case:
    def case(draw: Draw) -> None:
        p = make(draw)
        try:
            check(draw, p)
        finally:
            if p.undo is not None:
                p.undo.remove()

    return case


PROBLEMS = {**OPS, **{name: learner(name) for name in LEARNERS}}
CASES: dict[str, tuple[float, Case]] = {
    **{name: (4, problem(make)) for name, make in OPS.items()},
    **{name: (2.5, problem(learner(name))) for name in LEARNERS},
    "labels": (6, lambda draw: faults.labels(draw, PROBLEMS, check)),
    "wrong": (8, lambda draw: faults.wrong(draw, PROBLEMS, check)),
    "files": (3, files.damaged),
}


def name_of(token: str) -> str:
    return Draw(token).pick("case", {name: weight for name, (weight, _) in CASES.items()})


def run(token: str) -> dict[str, Any]:
    """status: "held", "refused" or "finding", the last with its kind; the case in words; the oddities that it had."""
    draw, name = Draw(token), name_of(token)
    draw.odd(*NO_TABLE)
    torch.manual_seed(draw.seed)
    found: dict[str, Any] = {"name": name, "status": "held", "kind": "", "detail": ""}
    try:
        CASES[name][1](draw)
    except Refused as error:
        found |= {"status": "refused", "detail": str(error)}
    except Finding as error:
        found |= {"status": "finding", "kind": error.kind, "detail": error.detail}
    except Exception as error:
        found |= {"status": "finding", "kind": f"the attack itself raises {first_line(error)}", "detail": _where(error)}
    return found | {"notes": "; ".join(draw.notes), "seen": draw.seen}


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    places = []
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{error} at {' '.join(places[-6:])}"
