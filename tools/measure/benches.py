"""The benches as functions: which there are, what each of their calls races, and what is true of it in float64."""

import importlib
import inspect
import itertools
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmeta import reference

FIRST = ("mlp_meta_loss", "proto_loss", "learners", "mlp_hvp", "sgd_step")  # the most telling ones


def modules():
    """Names of bench_<name>.py that race on any device: those of ops, of learners and of unroll."""
    names = [*sorted(reference.__all__), "learners", "unroll"]
    return [*FIRST, *(name for name in names if name not in FIRST)]


def calls(name):
    """(function, arguments) of every call that pytest would make of bench_<name>.py."""
    module = importlib.import_module(f"bench_{name}")
    for function in vars(module).values():
        if inspect.isfunction(function) and function.__name__.startswith("bench_"):
            marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
            for values in itertools.product(*(mark.args[1] for mark in marks)):
                yield function, _arguments(marks, values)


def _arguments(marks, values):
    found = {}
    for mark, value in zip(marks, values, strict=True):
        names = mark.args[0]
        found |= {names: value} if isinstance(names, str) else dict(zip(names, value, strict=True))
    return found


def label(function, arguments):
    return " ".join([function.__name__, *map(str, arguments.values())])


def given(function, arguments):
    """What a bench gives its `race` on these arguments."""
    found = []
    torch.manual_seed(0)
    function(lambda group, contenders, **more: found.append((contenders, more)), **arguments)
    ((contenders, more),) = found
    also, compiled = more.get("also") or {}, more.get("compiled") or {}
    return SimpleNamespace(contenders=contenders, also=also, compiled=compiled, truth=more.get("truth"))


def in_float64(function, arguments):
    """The results of the bench's truth, or of its reference, on the same numbers in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with DrawnInFloat32():
            bench = given(function, arguments)
        return (bench.truth or bench.contenders["reference"])()
    finally:
        torch.set_default_dtype(before)


class DrawnInFloat32(TorchFunctionMode):
    """Random numbers are those of float32, whatever the dtype."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.randn, torch.rand):
            wanted = {"dtype": torch.get_default_dtype(), "requires_grad": False} | kwargs
            drawn = func(*args, **kwargs | {"dtype": torch.float32, "requires_grad": False})
            return drawn.to(wanted["dtype"]).requires_grad_(wanted["requires_grad"])
        if func is torch.randn_like:
            return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            target, *rest = [kwargs.pop("tensor")] if "tensor" in kwargs else args
            with torch.no_grad():
                return target.copy_(func(torch.empty_like(target, dtype=torch.float32), *rest, **kwargs))
        return func(*args, **kwargs)
