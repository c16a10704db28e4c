"""A bench's contenders without racing them, and what is true of them in float64."""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


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


def given(function, arguments):
    """What bench `function` gives its `race` on these arguments."""
    found = []
    torch.manual_seed(0)
    function(lambda group, contenders, **more: found.append((group, contenders, more)), **arguments)
    ((group, contenders, more),) = found
    return SimpleNamespace(
        group=group,
        contenders=contenders,
        also=more.get("also") or {},
        compiled=more.get("compiled") or {},
        truth=more.get("truth"),
    )


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
