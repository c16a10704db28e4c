"""Wrong labels and wrong arguments: each must raise `<op>: <what must hold>, got <what came>`, and what follows must be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draw import Draw
from .problem import Finding, Problem, Slot, exact, fill, first_line, outputs, says_what

Makers = dict[str, Callable[[Draw], Problem]]
Check = Callable[[Draw, Problem], None]
SUBJECT = r"[A-Za-z_0-9]+"  # a learner may leave the check to an op

EMPTY = "every class must have a support example"

WRONG: dict[str, Any] = {
    "None": None, "text": "x", "an object": object(), "a set": {1}, "nested lists": [[1]], "an empty list": [], "a dict": {"a": 1},
    "5.0": 5.0, "-1": -1, "0": 0, "-100.0": -100.0, "NaN": float("nan"), "inf": float("inf"), "huge": 2**40, "beyond": 10**30,
    "True": True, "numpy": np.ones((2, 2)), "np.int64": np.int64(3), "complex": torch.ones(2, 2, dtype=torch.cfloat),
    "integers": torch.arange(3), "sparse": torch.eye(2).to_sparse(), "meta": torch.empty(2, 2, device="meta"),
    "0-dim": torch.tensor(1.0), "0-dim NaN": torch.tensor(float("nan")), "empty": torch.empty(0), "half": torch.ones(2, 2).half(),
    "bool tensor": torch.ones(2, dtype=torch.bool),
}  # fmt: skip
NEVER_RIGHT = ("an object", "a set", "a dict")


def labels(draw: Draw, makers: Makers, check: Check) -> None:
    """A label out of range, or a class without examples; a learner names its own argument."""
    name, p = _problem(draw, makers, lambda p: any(y.numel() for y in p.labels.values()) and p.checks_labels)
    key = draw.pick(
        "key", [k for k, y in p.labels.items() if y.numel() and k in map(_key, p.arguments.values())] or ["none"]
    )
    if key == "none":
        return
    y, ways = p.labels[key].clone(), _ways(p, key)
    wrong = draw.pick("fault", (ways, ways + 1, -1, 10**12, -(10**12), -101))
    ignored = p.arguments.get("ignore_index", -100)
    if wrong == ignored:
        wrong = ways + 7
    if wrong == ways and name in ("ProtoNet", "MatchingNet"):
        wrong = ways + 1  # without num_classes one way more may be right
    y.view(-1)[draw.pick("place", range(y.numel()))] = wrong
    draw.note(f"{name}: {key} {wrong} of {ways} ways")
    tensors = [x if isinstance(x, torch.nn.Parameter) else exact(x).to(p.dtype or torch.float64) for x in p.tensors]
    try:
        got = outputs(p.function(**fill(p.arguments, tensors, p.labels | {key: y})))
    except Exception as error:
        if not (
            isinstance(error, ValueError) and says_what(SUBJECT, error) and (key in str(error) or EMPTY in str(error))
        ):
            raise Finding(f"{name} does not name {key}: {first_line(error)}", str(error)[:300]) from error
    else:
        values = [float(x.flatten()[0]) for x in got if x.numel()][:2]
        raise Finding(f"{name} takes {key} out of range", f"returns {values}")
    check(draw, p)


def _key(slot: Any) -> Any:
    return slot.key if isinstance(slot, Slot) else None


def _ways(p: Problem, key: str) -> int:
    """The number of classes, from the arguments or the shape of what is classified."""
    if "num_classes" in p.arguments:
        return p.arguments["num_classes"]
    if "prototypes" in p.arguments:
        return p.tensors[p.arguments["prototypes"].key].shape[-2]
    if "params" in p.arguments:
        return p.tensors[p.arguments["params"][-2].key].shape[-2]
    return p.ways


def _problem(draw: Draw, makers: Makers, fits: Callable[[Problem], bool]) -> tuple[str, Problem]:
    """A problem of any op or learner that fits."""
    for _ in range(50):
        name = draw.pick("subject", list(makers))
        draw.notes.clear()
        p = makers[name](draw)
        if p.undo is not None:
            p.undo.remove()
        elif fits(p):
            return name, p
    raise AssertionError("no problem fits")


def wrong(draw: Draw, makers: Makers, check: Check) -> None:
    """One argument, or an entry of it, is of a wrong type or value; then the right call must work."""
    name, p = _problem(draw, makers, lambda p: True)
    dtype = p.dtype or torch.float64
    tensors: list[Tensor] = [x if isinstance(x, torch.nn.Parameter) else exact(x).to(dtype) for x in p.tensors]
    key, kind = draw.pick("key", [k for k in p.arguments if k not in ("values", "fn")]), draw.pick("wrong", list(WRONG))
    right = fill(p.arguments, tensors, p.labels)
    value, entry = WRONG[kind], isinstance(right[key], list) and right[key] and draw.odd("entry", 0.5)
    if entry:
        value = [value, *right[key][1:]]
    draw.note(f"{name}: {key}{'[0]' if entry else ''} = {kind}")
    if kind in ("huge", "beyond") and key in ("steps", "padding"):
        return  # right, and for ever
    try:
        p.function(**right | {key: value})
    except Exception as error:
        if not says_what(SUBJECT, error):
            raise Finding(f"{name}, wrong {key}: {first_line(error)}", f"{kind}: {str(error)[:400]}") from error
    else:
        if kind in NEVER_RIGHT:
            raise Finding(f"{name} takes {kind} as {key}", "")
    try:
        check(draw, p)
    except Finding as error:
        raise Finding(f"{name} after a wrong {key}: {error.kind}", f"{kind}: {error.detail}") from error
