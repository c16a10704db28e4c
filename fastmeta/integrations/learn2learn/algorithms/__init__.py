from .maml import MAML, maml_update
from .meta_sgd import MetaSGD, meta_sgd_update

__all__ = ["MAML", "MetaSGD", "maml_update", "meta_sgd_update"]
