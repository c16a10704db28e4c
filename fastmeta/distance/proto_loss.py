from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Metric, Reduction
from .proto_log_softmax import METRICS, check_distance, in_metric

REDUCTIONS = ("mean", "sum", "none")
CORES: tuple[int | None, ...] = (2, 2, 1, None, 1, 1, 1, 1)
PLAIN = CORES[:4]
NONE = -1  # of `exclude`: no prototype


@overload
def proto_loss(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    *,
    metric: Metric = "euclidean",
    scale_diag: Tensor | None = None,
    scale_tril: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    exclude: Tensor | None = None,
    margin: float = 0.0,
    target_distance: Tensor | None = None,
    bias: Tensor | None = None,
    classes: Tensor | None = None,
    label_smoothing: float = 0.0,
    return_accuracy: Literal[False] = False,
) -> Tensor: ...
@overload
def proto_loss(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    *,
    metric: Metric = "euclidean",
    scale_diag: Tensor | None = None,
    scale_tril: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    exclude: Tensor | None = None,
    margin: float = 0.0,
    target_distance: Tensor | None = None,
    bias: Tensor | None = None,
    classes: Tensor | None = None,
    label_smoothing: float = 0.0,
    return_accuracy: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def proto_loss(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    *,
    metric: Metric = "euclidean",
    scale_diag: Tensor | None = None,
    scale_tril: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    exclude: Tensor | None = None,
    margin: float = 0.0,
    target_distance: Tensor | None = None,
    bias: Tensor | None = None,
    classes: Tensor | None = None,
    label_smoothing: float = 0.0,
    return_accuracy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""loss = -mean_q log p(y_q | x_q), p as in `proto_log_softmax`, without the `[Q, N]` matrix.

    Shapes: query `[..., Q, D]`, prototypes `[..., N, D]`, targets `[..., Q]` int64 -> `[...]`, or `[..., Q]` for reduction
    "none". "mean" and "sum" are over the task's targets that are not `ignore_index`; a task that has none gets 0.
    `exclude`: `[..., Q]` int64, for each query one prototype that does not count, such as the query itself, or -1.
    `margin`: what is taken off the logit of the target, -d(x_q, c_y) / temperature - margin.
    `target_distance`: `[..., Q]`, what stands in place of d(x_q, c_y): the distance to a prototype that is the query's alone, or one
    with a margin on the angle.
    `bias`: `[..., N]`, added to the logits, also to that of a distance given.
    `classes`: `[..., N]` int64 of any values, the class of each prototype. Targets are then of these, and p(y | x) is the sum of p over
    all prototypes of class y that count: several positives. Goes without margin and target_distance.
    `targets` of floating point, `[..., Q, N]`: shares of the prototypes, soft targets: loss_q = -sum_n targets_qn log p_qn, as in PyTorch's
    cross_entropy with class probabilities. Rows of any sum and negative entries count as they are; the mean is over all Q queries. They go
    without margin, target_distance, classes and an ignore_index; the entry of an excluded prototype must be 0. Their gradient, -log p, is
    made only where it is asked for. For the accuracy the target is the first of the largest entries.
    `label_smoothing`: s in [0, 1]: loss_q = (1 - s) times the above + s mean_k -log p_k over the prototypes that count, as in PyTorch.
    `return_accuracy`: also, from the same pass, how often the first of the largest logits, without the margin, is that of the target or
    its class: `[...]`, or for "none" 1 or 0 of each query `[..., Q]`; reduced as the loss, without a gradient.
    `bias` and `classes` have the batch dimensions of the prototypes, or none.

    Differentiable in all tensors of floating point, to any order. Metrics, `scale_diag`, `scale_tril`, temperature, dtypes and numerics are
    those of `proto_log_softmax`.

    Errors: as in `proto_log_softmax`; ValueError for a target or an excluded prototype out of range, a target that is excluded, a
    margin that is not finite, label_smoothing out of [0, 1], a target of whose class no prototype counts, a soft target that an excluded
    prototype has a share of. On CUDA targets are not looked at, because that would wait for the device: there a target that is out of range
    or excluded makes its loss NaN.

    Kernels: native CPU; Triton (CUDA).

    Source: Snell et al. 2017, arXiv:1703.05175, algorithm 1; margin: Wang et al. 2018,
    arXiv:1801.09414.

    ```python
    import torch
    import fastmeta

    query = torch.randn(32, 75, 64, requires_grad=True)
    centres, targets = torch.randn(32, 5, 64), torch.randint(0, 5, (32, 75))
    fastmeta.proto_loss(query, centres, targets).mean().backward()

    z = torch.nn.functional.normalize(torch.randn(256, 64), dim=-1)
    pair, own = torch.arange(256).roll(128), torch.arange(256)
    nt_xent = fastmeta.proto_loss(
        z, z, pair, exclude=own, metric="cosine", temperature=0.1
    )
    ```
    """
    op = "proto_loss"
    ignore_index = _check.integer(op, "ignore_index", ignore_index, -(2**63), 2**63 - 1)
    metric = _check.one_of(op, "metric", metric, METRICS)
    temperature = _check.scalar(op, "temperature", temperature)
    if type(margin) is not float or not abs(margin) < _check.INFINITY:
        margin = _finite(op, margin)
    if type(label_smoothing) is not float:
        label_smoothing = _check.number(op, "label_smoothing", label_smoothing)
    reduction = _check.one_of(op, "reduction", reduction, REDUCTIONS)
    return_accuracy = _check.flag(op, "return_accuracy", return_accuracy)
    if scale_diag is not None or scale_tril is not None:
        query, prototypes = in_metric(op, metric, query, prototypes, scale_diag, scale_tril)
    soft = isinstance(targets, Tensor) and targets.is_floating_point()
    if soft:
        _check_soft(op, ignore_index, margin, target_distance, classes)
    args: tuple[Any, ...] = (query, prototypes, targets, temperature)
    # What is not given is static: an input costs autograd a microsecond, also where it is None.
    static: tuple[Any, ...] = (
        None, None, None, None, metric, ignore_index, reduction, margin, label_smoothing, return_accuracy
    )  # fmt: skip
    cores = PLAIN
    if not (exclude is None and target_distance is None and bias is None and classes is None and not label_smoothing):
        args = _with_more(op, (*args, exclude, target_distance, bias, classes), margin, label_smoothing, ignore_index)
        static, cores = static[len(args) - 4 :], CORES[: len(args)]
    if soft:
        cores = (2, 2, 2, *cores[3:])
    found = direct(op, args, static, cores)
    if found is not None:
        if classes is None and not soft:
            _check.refuse_label_out_of_range(op, "targets", targets, prototypes.shape[-2], ignore_index)
        if exclude is not None:
            _refuse_excluded(op, exclude, targets, prototypes.shape[-2], ignore_index, classes is None)
        return (found[0], found[1].detach()) if return_accuracy else found[0]
    query, prototypes, targets, temperature, *more = args
    lead = check_distance(op, query, prototypes, temperature)
    if lead and query.ndim == 2:
        query = query.expand(*lead, *query.shape)
    if soft:
        _check.floating(op, query=query, targets=targets)
        if list(targets.shape) != (expected := [*query.shape[:-1], prototypes.shape[-2]]):
            raise ValueError(f"{op}: targets of floating point must have shape {expected}, got {_check.shape(targets)}")
    else:
        _check.labels(op, "targets", targets, query.shape[:-1], query.device)
    if classes is None and not soft:
        _check.label_range(op, "targets", targets, prototypes.shape[-2], ignore_index)
    if exclude is not None:
        _check.labels(op, "exclude", exclude, query.shape[:-1], query.device)
        if _check.visible(exclude) and _check.visible(targets):
            _refuse_excluded(op, exclude, targets, prototypes.shape[-2], ignore_index, classes is None)
    if target_distance is not None:
        _check.floating(op, query=query, target_distance=target_distance)
        if target_distance.shape != query.shape[:-1]:
            expected, got = _check.shape(query)[:-1], _check.shape(target_distance)
            raise ValueError(f"{op}: target_distance must have shape {expected}, got {got}")
    folded = (
        _check.fold(query, lead, 2),
        _check.fold(prototypes, lead, 2, shared=True),
        _check.fold(targets, lead, 1 + soft),
        temperature,
        *(None if x is None else _check.fold(x, lead, 1, shared=i >= 2) for i, x in enumerate(more)),
    )
    out = [_check.unfold(y, lead) for y in call(op, folded, static, cores)]
    return (out[0], out[1].detach()) if return_accuracy else out[0]


def _finite(op: str, margin: Any) -> float:
    found = _check.number(op, "margin", margin)
    if not abs(found) < _check.INFINITY:
        raise ValueError(f"{op}: margin must be finite, got {found}")
    return found


def _check_soft(
    op: str, ignore_index: int, margin: float, target_distance: Tensor | None, classes: Tensor | None
) -> None:
    if margin != 0 or target_distance is not None or classes is not None:
        raise ValueError(
            f"{op}: targets of floating point must go without margin, target_distance and classes, got one of them"
        )
    if ignore_index >= 0:
        raise ValueError(f"{op}: ignore_index must be negative with targets of floating point, got {ignore_index}")


def _with_more(op: str, args: tuple[Any, ...], margin: float, smoothing: float, ignore_index: int) -> tuple[Any, ...]:
    """`args` up to the last that is given; bias and classes, checked, have the batch dimensions of the prototypes."""
    if smoothing or args[6] is not None or args[7] is not None:
        args = _with_classes(op, args, margin, smoothing, ignore_index)
    count = 8
    while args[count - 1] is None:
        count -= 1
    return args[:count]


def _with_classes(
    op: str, args: tuple[Any, ...], margin: float, smoothing: float, ignore_index: int
) -> tuple[Any, ...]:
    query, prototypes, targets, temperature, exclude, target_distance, bias, classes = args
    if not 0 <= smoothing <= 1:
        raise ValueError(f"{op}: label_smoothing must be in [0, 1], got {smoothing}")
    lead = check_distance(op, query, prototypes, temperature)
    if bias is not None:
        _check.floating(op, query=query, bias=bias)
    if classes is not None:
        _check.dense(op, "classes", classes)
        _check.labels(op, "classes", classes, classes.shape, query.device)
        if margin != 0 or target_distance is not None:
            raise ValueError(f"{op}: classes must go without margin and target_distance, got one of them")
    each = [x for x in (bias, classes) if x is not None]
    expected = prototypes.shape[:-1]
    for name, x in (("bias", bias), ("classes", classes)):
        if x is not None and list(x.shape) not in (list(expected), list(expected[-1:]), [*lead, expected[-1]]):
            raise ValueError(f"{op}: {name} must have shape {list(expected)}, got {_check.shape(x)}")
    widest = max([expected, *(x.shape for x in each)], key=len)
    if len(widest) > len(expected):
        prototypes = prototypes.expand(*widest, prototypes.shape[-1])
    bias, classes = (None if x is None else x.expand(widest) for x in (bias, classes))
    if classes is not None:
        for name, x in (("targets", targets), ("exclude", exclude)):
            if x is not None:
                _check.labels(op, name, x, [*lead, query.shape[-2]], query.device)
        if all(map(_check.visible, (classes, targets, *([] if exclude is None else [exclude])))):
            _refuse_alone(op, classes, targets, exclude, ignore_index)
    return query, prototypes, targets, temperature, exclude, target_distance, bias, classes


def _refuse_alone(op: str, classes: Tensor, targets: Tensor, exclude: Tensor | None, ignore_index: int) -> None:
    """ValueError where no prototype of a target's class counts."""
    classes = classes.expand(*targets.shape[:-1], -1)
    ordered, wanted = classes.sort(-1).values.contiguous(), targets.contiguous()
    many = torch.searchsorted(ordered, wanted, right=True) - torch.searchsorted(ordered, wanted)
    if exclude is not None:
        out = classes.gather(-1, exclude.clamp(0, classes.shape[-1] - 1))
        many = many - ((out == targets) & (exclude >= 0)).long()
    alone = (many < 1) & (targets != ignore_index)
    if bool(alone.any()):
        raise ValueError(f"{op}: a prototype of each target's class must count, got none for {int(targets[alone][0])}")


def _refuse_excluded(
    op: str, exclude: Tensor, targets: Tensor, classes: int, ignore_index: int, of_prototypes: bool
) -> None:
    """ValueError where `exclude` of CPU tensors is out of range, or is a target that counts; `of_prototypes`: targets are these."""
    if not exclude.is_cpu:
        return
    wrong = _check.label_out_of_range(exclude, classes, NONE)
    if wrong is not None:
        raise ValueError(f"{op}: exclude must be in [0, {classes}) or {NONE}, got {wrong}")
    if targets.is_floating_point():
        share = targets.gather(-1, exclude.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        clash = (exclude >= 0) & (share != 0)
        if bool(clash.any()):
            raise ValueError(f"{op}: targets must be 0 at what is excluded, got {float(share[clash][0])}")
    if targets.is_floating_point() or not of_prototypes:
        return
    clash = (exclude == targets) & (targets != ignore_index)
    if bool(clash.any()):
        raise ValueError(f"{op}: exclude must not be the target, got {int(targets[clash][0])} for both")
