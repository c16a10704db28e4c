"""The libraries of peers.txt and learn2learn, where they are installed. Run as a program: fail where not."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

from fastmeta.integrations import _library

PEERS = ("learn2learn", "higher", "easyfsl", "torchopt")
OTHERS = ("pytorch_metric_learning", "titans_pytorch")


def peer(name):
    """The library as a module; the test is skipped where it is not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed" + (": `make peers` does so" if name in (*PEERS, *OTHERS) else ""))
    return load(name)


def load(name):
    if name == "learn2learn":  # which imports gym, torchvision and more
        return _library.load(name)
    if name == "easyfsl":
        _torchvision()
        importlib.import_module("easyfsl.methods")
    if name == "titans_pytorch":  # whose __init__ imports what its memory does not need
        if name not in sys.modules:
            sys.modules[name] = importlib.util.module_from_spec(importlib.util.find_spec(name))
        importlib.import_module(f"{name}.neural_memory")
    return importlib.import_module(name)


def _torchvision():
    """easyfsl imports blocks of residual networks, which no test uses."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    for name in ("torchvision", "torchvision.models", "torchvision.models.resnet"):
        sys.modules[name] = ModuleType(name)
    blocks = dict.fromkeys(("BasicBlock", "Bottleneck", "conv1x1", "conv3x3"))
    vars(sys.modules["torchvision.models.resnet"]).update(blocks)


if __name__ == "__main__":
    for name in (*PEERS, *OTHERS):
        load(name)
        print("loaded", name)
