"""The names of TorchOpt 0.7.3 that an explicit-gradient MAML program calls: MetaSGD and MetaAdam, and states of a module kept and
put back. `fastmeta.MAML` takes all tasks at once."""

from .._library import otherwise
from . import optim, utils
from .optim import MetaAdam, MetaOptimizer, MetaSGD
from .utils import extract_state_dict, module_clone, module_detach_, recover_state_dict, stop_gradient

__all__ = [
    "MetaAdam",
    "MetaOptimizer",
    "MetaSGD",
    "extract_state_dict",
    "module_clone",
    "module_detach_",
    "optim",
    "recover_state_dict",
    "stop_gradient",
    "utils",
]
__getattr__ = otherwise("torchopt", __all__)
