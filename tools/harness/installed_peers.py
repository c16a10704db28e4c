"""The libraries of peers.txt and learn2learn, where they are installed. Run as a program: fail where not."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

PEERS = ("learn2learn", "higher", "easyfsl", "torchopt")


def peer(name):
    """The library as a module; the test is skipped where it is not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed" + (": `make peers` does so" if name in PEERS else ""))
    return load(name)


def load(name):
    if name == "learn2learn":
        return _learn2learn()
    if name == "easyfsl":
        _torchvision()
        importlib.import_module("easyfsl.methods")
    if name == "titans_pytorch":
        return _parts(name, "neural_memory")
    return importlib.import_module(name)


def _parts(name, *parts):
    """The library with these submodules, without its __init__."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}")
    if name not in sys.modules:
        package = sys.modules[name] = ModuleType(name)
        package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
    for part in parts:
        importlib.import_module(f"{name}.{part}")
    return sys.modules[name]


def _learn2learn():
    """Its algorithms and heads, which are pure Python, without its __init__, which imports gym, torchvision and more."""
    if "learn2learn" not in sys.modules:
        package = _parts("learn2learn", "_version", "utils", "algorithms", "nn")
        package.__version__ = package._version.__version__
        for name in ("clone_module", "detach_module", "update_module"):
            setattr(package, name, getattr(package.utils, name))
    return sys.modules["learn2learn"]


def _torchvision():
    """easyfsl imports blocks of residual networks, which no test uses."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    for name in ("torchvision", "torchvision.models", "torchvision.models.resnet"):
        sys.modules[name] = ModuleType(name)
    blocks = dict.fromkeys(("BasicBlock", "Bottleneck", "conv1x1", "conv3x3"))
    vars(sys.modules["torchvision.models.resnet"]).update(blocks)


if __name__ == "__main__":
    for name in PEERS:
        load(name)
        print("loaded", name)
