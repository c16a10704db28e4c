"""What stands in the place of a dict of parameters or buffers whose values are not there yet."""

from __future__ import annotations

from typing import Any

from torch import nn


class Unsettled(dict[str, Any]):
    """Who looks into it gets the values: `listener.settle(why)` puts them there."""

    count = 0

    def __init__(self, listener: Any, part: nn.Module, kind: str) -> None:
        super().__init__()
        self.listener, self.part, self.kind = listener, part, kind
        self.original: dict[str, Any] = getattr(part, kind)
        part.__dict__[kind] = self
        Unsettled.count += 1

    def leave(self) -> None:
        """The dict is in its place again."""
        self.part.__dict__[self.kind] = self.original
        Unsettled.count -= 1

    def __len__(self) -> int:
        return len(self.original)

    def __bool__(self) -> bool:
        return bool(self.original)


def _settled(name: str) -> Any:
    def of_original(self: Unsettled, *args: Any, **kwargs: Any) -> Any:
        self.listener.settle("parameters were asked for")
        return getattr(self.original, name)(*args, **kwargs)

    return of_original


for _name in (
    "__iter__", "__getitem__", "__setitem__", "__delitem__", "__contains__", "__eq__", "__ne__", "__or__", "__ior__", "__ror__",
    "__reversed__", "__repr__", "__reduce_ex__", "get", "items", "keys", "values", "pop", "popitem", "setdefault", "update", "clear",
    "copy",
):  # fmt: skip
    setattr(Unsettled, _name, _settled(_name))
