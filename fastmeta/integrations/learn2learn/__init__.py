"""The names of learn2learn 0.2.0 that a MAML, Meta-SGD or ProtoNet program calls: the same signatures and state-dict keys."""

from .._library import otherwise
from . import algorithms, nn, utils
from .utils import (
    accuracy,
    clone_module,
    clone_named_parameters,
    clone_parameters,
    detach_module,
    magic_box,
    update_module,
)

__all__ = [
    "accuracy",
    "algorithms",
    "clone_module",
    "clone_named_parameters",
    "clone_parameters",
    "detach_module",
    "magic_box",
    "nn",
    "update_module",
    "utils",
]
__getattr__ = otherwise("learn2learn", __all__)
