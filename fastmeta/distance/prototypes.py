from __future__ import annotations

from torch import Tensor

from .. import _check
from .._route import call, direct

CORES = (2, 1)


def prototypes(support: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    r"""c_k = mean of the support examples of class k.

    Shapes: support `[..., S, D]`, labels `[..., S]` int64 in `[0, num_classes)` -> `[..., num_classes, D]`.

    Differentiable in `support`, to any order. dtypes: float32, float64, float16 and bfloat16, in and out; sums in float32 or
    better.

    Errors: ValueError for a label out of range, a class without an example, or more classes than examples. On CUDA labels are
    not looked at, because that would wait for the device: there a label out of range makes all prototypes of its task NaN, and
    an empty class has the prototype NaN.

    Kernels: Triton (CUDA), native CPU. Source: Snell et al. 2017, arXiv:1703.05175, eq. 1.

    ```python
    import torch
    import fastmeta

    support = torch.randn(32, 25, 64)  # 32 tasks, 5 ways, 5 shots
    labels = torch.arange(25).remainder(5).expand(32, 25)
    centres = fastmeta.prototypes(support, labels, 5)  # [32, 5, 64]
    ```
    """
    op = "prototypes"
    num_classes = _check.integer(op, "num_classes", num_classes, 1, _check.MOST_CLASSES)
    found = direct(op, (support, labels), (num_classes,), CORES)
    if found is not None:
        _check.refuse_label_out_of_range(op, "labels", labels, num_classes)
        _check.refuse_empty_class(op, labels, num_classes)
        return found[0]
    _check.floating(op, support=support)
    _check.at_least(op, 2, support=support)
    lead = list(support.shape[:-2])
    _check.labels(op, "labels", labels, support.shape[:-1], support.device)
    _check.label_range(op, "labels", labels, num_classes)
    _check.every_class(op, labels, num_classes)
    (out,) = call(op, (_check.fold(support, lead, 2), _check.fold(labels, lead, 1)), (num_classes,), CORES)
    return _check.unfold(out, lead)
