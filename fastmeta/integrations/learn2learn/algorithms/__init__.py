from ..._library import otherwise
from .base_learner import BaseLearner
from .maml import MAML, maml_update
from .meta_sgd import MetaSGD, meta_sgd_update

__all__ = ["MAML", "BaseLearner", "MetaSGD", "maml_update", "meta_sgd_update"]
__getattr__ = otherwise("learn2learn.algorithms", __all__)
