"""What a module here does not have comes from the installed library whose names it bears: attributes by `otherwise`, and modules
that are imported (`from fastmeta.integrations.learn2learn.data import MetaDataset`) by a finder."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

HERE = f"{__package__}."
LIBRARIES = ("learn2learn", "higher", "easyfsl", "torchopt")


def otherwise(library: str, offered: Sequence[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module that stands in for one of `library`, which has the names `offered` of its own."""

    def of_library(name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(f"module {HERE}{library} has no attribute {name}")
        try:
            return _member(load(library), name)
        except (ImportError, AttributeError) as error:
            here = ", ".join(offered)
            words = f"the name must be one that fastmeta.integrations has ({here}) or the installed library"
            raise AttributeError(f"{library}: {words}, got {name} ({error})") from error

    return of_library


def load(name: str) -> ModuleType:
    """A module of an installed library."""
    library = name.partition(".")[0]
    if library == "learn2learn" and library not in sys.modules:
        try:
            return importlib.import_module(name)
        except Exception:  # gym and torchvision fail in ways of their own on a newer numpy or torch
            if (spec := importlib.util.find_spec(library)) is None:
                raise
            _in_parts(spec)
    return importlib.import_module(name)


def _in_parts(spec: ModuleSpec) -> None:
    """The package without its __init__, which imports gym, torchvision and more: its parts are imported when they are asked for."""
    library = spec.name
    for name in [name for name in sys.modules if name.startswith(f"{library}.")]:  # which saw half a package
        del sys.modules[name]
    package = sys.modules[library] = importlib.util.module_from_spec(spec)

    def part(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {library} has no attribute {name}")
        if importlib.util.find_spec(f"{library}.{name}") is not None:
            return importlib.import_module(f"{library}.{name}")
        return getattr(importlib.import_module(f"{library}.utils"), name)

    vars(package)["__getattr__"] = part


def _member(module: ModuleType, name: str) -> Any:
    """An attribute of a module, or one of its submodules."""
    try:
        return getattr(module, name)
    except AttributeError:
        if importlib.util.find_spec(f"{module.__name__}.{name}") is None:
            raise
        return importlib.import_module(f"{module.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    """Asked last: what no file here is found for."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        library = fullname.removeprefix(HERE)
        if library == fullname or library.partition(".")[0] not in LIBRARIES:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.removeprefix(HERE)
        try:
            library = load(name)
        except ImportError as error:
            words = f"{name}: the module must be one that fastmeta.integrations has or the installed library"
            raise ImportError(f"{words}, got {error}", name=module.__name__) from error
        vars(module).update({k: v for k, v in vars(library).items() if not k.startswith("__") or k == "__all__"})
        vars(module)["__getattr__"] = otherwise(name, ())


sys.meta_path.append(_Finder())
