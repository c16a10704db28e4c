"""What a checkpoint must hold, looked at before any of it is taken: a ValueError names the file and what is wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import Learner, adam
from torch import Tensor, nn


def fits(path: Path, name: str, own: Any, found: Any) -> None:
    """`found` must have the keys of `own`, and tensors of its shapes and dtypes with finite numbers."""
    if isinstance(own, dict):
        keys(path, name, found, own)
        for key, value in own.items():
            fits(path, f"{name}.{key}", value, found[key])
    elif not isinstance(found, Tensor) or (found.dtype, found.shape) != (own.dtype, own.shape):
        refuse(path, f"{name}, {said(own)}", said(found))
    elif not found.isfinite().all():
        refuse(path, f"{name} of finite numbers", "NaN or infinity")


def keys(path: Path, name: str, found: Any, expected: Any) -> None:
    if not isinstance(found, dict):
        refuse(path, f"{name} with names", said(found))
    for key in expected:
        if key not in found:
            refuse(path, f"{name} with {key!r}", "none")
    for key in found:
        if key not in expected:
            refuse(path, f"{name} without {key!r}", "it")


def number(path: Path, name: str, found: Any, least: int, most: int) -> None:
    if type(found) is not int or not least <= found <= most:
        refuse(path, f"{name} from {least} to {most}", repr(found)[:60])


def equal(path: Path, name: str, own: Any, found: Any) -> None:
    if not same(own, found):
        refuse(path, f"{name} {own!r}", repr(found)[:60])


def same(own: Any, found: Any) -> bool:
    """A tensor, say, is no number, nor to be asked whether it is one."""
    return type(found) is type(own) and found == own


def optimiser(path: Path, learner: Learner, step: int, found: Any) -> None:
    """Adam's: of each parameter that a gradient reached, what it has after `step` steps at most."""
    twins = nn.ParameterList(torch.zeros_like(p) for p in learner.parameters())
    for twin in twins:
        twin.grad = torch.zeros_like(twin)
    own = adam(twins, 0.0)
    own.step()
    expected = own.state_dict()["state"]
    keys(path, "optimiser", found, ("state", "param_groups"))
    if not isinstance(found["state"], dict) or not found["state"]:
        refuse(path, "optimiser.state with names", said(found["state"]))
    for index, entry in found["state"].items():
        name = f"optimiser.state.{index}"
        if index not in expected:
            refuse(path, f"optimiser.state of {len(twins)} parameters", f"one of {index!r}")
        fits(path, name, expected[index], entry)
        if not 1 <= entry["step"] <= step:
            refuse(path, f"{name}.step from 1 to {step}", f"{entry['step']:g}")
        if (entry["exp_avg_sq"] < 0).any():
            refuse(path, f"{name}.exp_avg_sq of squares", "negative ones")


def noise(path: Path, found: Any) -> None:
    """Of each rank the states of its random generators, the CPU's first."""
    if not isinstance(found, list) or not found or not all(isinstance(states, list) and states for states in found):
        refuse(path, "noise of every rank", said(found))
    for states in found:
        fits(path, "noise", torch.get_rng_state(), states[0])
        if not all(isinstance(state, Tensor) and state.dtype == torch.uint8 for state in states):
            refuse(path, "noise of bytes", "others")
        try:
            torch.Generator().set_state(states[0])
        except RuntimeError as error:
            refuse(path, "noise that is a generator's", str(error))


def refuse(path: Path, must: str, got: str) -> None:
    raise ValueError(f"{path} must hold {must}, got {got}")


def said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, dict | list | tuple | str) else kind
