"""The names of learn2learn 0.2.0 that a MAML, Meta-SGD or ProtoNet program calls: the same signatures and state-dict keys."""

from . import algorithms, nn, utils
from .utils import clone_module, clone_parameters, detach_module, update_module

__all__ = ["algorithms", "clone_module", "clone_parameters", "detach_module", "nn", "update_module", "utils"]
