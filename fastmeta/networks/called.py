"""torch.func.functional_call, also of a module that has two names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def called(module: nn.Module, values: Mapping[str, Tensor], inputs: tuple[Any, ...], **kwargs: Any) -> Any:
    """module(*inputs, **kwargs) with `values` in place of its parameters, wherever these are used.

    functional_call ties weights by all their names; of a module that has two names it then leaves a value in the place of the parameter.
    Here each module has its first name alone.
    """
    return functional_call(module, _of_all(module, values), inputs, kwargs, tie_weights=False)


def _of_all(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`values` also under the names of other modules' parameters that are the same."""
    names: dict[int, list[str]] = {}
    for path, each in module.named_modules():
        for name, parameter in each.named_parameters(path, recurse=False, remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
    found = dict(values)
    for same in names.values():
        if len(same) > 1:
            given = next((values[name] for name in same if name in values), None)
            found |= {name: given for name in same if given is not None and name not in values}
    return found
