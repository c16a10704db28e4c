"""Wrong labels and arguments: each must raise `<op>: <what must hold>, got <what came>`, and what follows must be right. Damaged
files: a documented error that names the file, or the same result."""

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from harness import damage

from .learner_problems import COMPARING
from .subject import Finding, Slot, exact, fill, first_line, outputs, says_what

SUBJECT = r"[A-Za-z_0-9]+"  # a learner may leave the check to an op
EMPTY = "every class must have a support example"
WRONG = {
    "None": None, "text": "x", "an object": object(), "a set": {1}, "nested lists": [[1]], "an empty list": [], "a dict": {"a": 1},
    "5.0": 5.0, "-1": -1, "0": 0, "-100.0": -100.0, "NaN": float("nan"), "inf": float("inf"), "huge": 2**40, "beyond": 10**30,
    "True": True, "numpy": np.ones((2, 2)), "np.int64": np.int64(3), "complex": torch.ones(2, 2, dtype=torch.cfloat),
    "integers": torch.arange(3), "sparse": torch.eye(2).to_sparse(), "meta": torch.empty(2, 2, device="meta"),
    "0-dim": torch.tensor(1.0), "0-dim NaN": torch.tensor(float("nan")), "empty": torch.empty(0), "half": torch.ones(2, 2).half(),
    "bool tensor": torch.ones(2, dtype=torch.bool),
}  # fmt: skip
NEVER_RIGHT = ("an object", "a set", "a dict")


def _problem(draw, makers, fits=lambda p: True):
    """A problem of any op or learner that fits, and its tensors as they are called with."""
    while True:
        draw.notes.clear()
        p = makers[draw.pick("subject", list(makers))](draw)
        if fits(p):
            dtype = p.dtype or torch.float64
            return p, [x if isinstance(x, nn.Parameter) else exact(x).to(dtype) for x in p.tensors]


def labels(draw, makers, check):
    """A label out of range, or a class without examples."""
    p, tensors = _problem(draw, makers, lambda p: _labelled(p) and not p.own_loss)
    key = draw.pick("key", _labelled(p))
    y, ways = p.labels[key].clone(), _ways(p)
    wrong = draw.pick("fault", (ways, ways + 1, -1, 10**12, -(10**12), -101))
    if wrong == p.arguments.get("ignore_index", -100):
        wrong = ways + 7
    if wrong == ways and p.name in COMPARING:
        wrong = ways + 1  # without num_classes one way more may be right
    y.view(-1)[draw.pick("place", range(y.numel()))] = wrong
    draw.note(f"{p.name}: {key} {wrong} of {ways} ways")
    try:
        got = outputs(p.function(**fill(p.arguments, tensors, p.labels | {key: y})))
    except Exception as error:
        named = says_what(SUBJECT, error) and (key in str(error) or EMPTY in str(error))
        if not (isinstance(error, ValueError) and named):
            raise Finding(f"{p.name} does not name {key}: {first_line(error)}", str(error)[:300]) from error
    else:
        values = [float(x.flatten()[0]) for x in got if x.numel()][:2]
        raise Finding(f"{p.name} takes {key} out of range", f"returns {values}")
    check(draw, p)


def _labelled(p):
    """The arguments that are labels."""
    return [
        s.key for s in p.arguments.values() if isinstance(s, Slot) and s.key in p.labels and p.labels[s.key].numel()
    ]


def _ways(p):
    """The number of classes, from the arguments or the shape of what is classified."""
    given = p.arguments
    if "num_classes" in given:
        return given["num_classes"]
    slot = given["prototypes"] if "prototypes" in given else given["params"][-2] if "params" in given else None
    return p.tensors[slot.key].shape[-2] if slot else p.ways


def wrong(draw, makers, check):
    """One argument, or an entry of it, is of a wrong type or value; then the right call must work."""
    p, tensors = _problem(draw, makers)
    key, kind = draw.pick("key", [k for k in p.arguments if k not in ("values", "fn")]), draw.pick("wrong", list(WRONG))
    right = fill(p.arguments, tensors, p.labels)
    value, entry = WRONG[kind], isinstance(right[key], list) and right[key] and draw.odd("entry", 0.5)
    value = [value, *right[key][1:]] if entry else value
    draw.note(f"{p.name}: {key}{'[0]' if entry else ''} = {kind}")
    if kind in ("huge", "beyond") and key in ("steps", "padding"):
        return  # right, and for ever
    try:
        p.function(**right | {key: value})
    except Exception as error:
        if not says_what(SUBJECT, error) and not (p.own_loss and key.endswith("_y")):  # which are that loss's to judge
            raise Finding(f"{p.name}, wrong {key}: {first_line(error)}", f"{kind}: {str(error)[:400]}") from error
    else:
        if kind in NEVER_RIGHT:
            raise Finding(f"{p.name} takes {kind} as {key}", "")
    try:
        check(draw, p)
    except Finding as error:
        raise Finding(f"{p.name} after a wrong {key}: {error.kind}", f"{kind}: {error.detail}") from error


def files(draw):
    """A damaged file of harness/damage.py."""
    kind = draw.pick("file", list(damage.TARGETS))
    draw.note(kind)
    with tempfile.TemporaryDirectory() as folder:
        of_file = damage.TARGETS[kind](Path(folder))
        rng = random.Random(draw.random("damage").getrandbits(40))
        for _ in range(10):
            try:
                of_file(rng)
            except Exception as error:
                raise Finding(f"{kind}: {first_line(error).replace(folder, '')}", str(error)[:300]) from error
