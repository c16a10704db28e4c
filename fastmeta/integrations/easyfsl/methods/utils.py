from torch import Tensor

from ... import _arguments, _library
from ..._scores import class_means

__all__ = ["compute_prototypes"]
__getattr__ = _library.otherwise("easyfsl.methods.utils", __all__)


def compute_prototypes(support_features: Tensor, support_labels: Tensor) -> Tensor:
    """The mean of the features of each class: [S, ...], labels [S] from 0 on without a gap -> [N, ...]."""
    op = "compute_prototypes"
    _arguments.tensor(op, "support_features", support_features)
    _arguments.tensor(op, "support_labels", support_labels)
    if support_labels.numel() == 0:
        raise ValueError(f"{op}: support_labels must hold at least one label, got none")
    labels = support_labels.long()
    return class_means(support_features, labels, int(labels.max()) + 1)
