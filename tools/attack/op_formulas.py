"""The ops as their papers define them, for one task in plain PyTorch; the arguments are those of the public functions.

Nothing here comes from fastmeta. Every line is the shortest that says it: no care for speed, or for rounding in less than float64.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def each_task(one, ranks, *args):
    """one(...) of every task, stacked; an argument has the batch dimensions, or `ranks` dimensions and is shared."""
    pairs = list(zip(args, ranks, strict=True))
    lead = max((tuple(a.shape[: a.ndim - r]) for a, r in pairs if a is not None), key=len)
    if not lead:
        return one(*args)
    count = math.prod(lead)

    def of_task(a, rank, t):
        if a is None:
            return None
        core = a.shape[a.ndim - rank :]
        if not count:
            return a.new_zeros(core)  # no task: for the shapes
        return a if a.ndim == rank else a.reshape(count, *core)[t]

    found = [one(*(of_task(a, r, t) for a, r in pairs)) for t in range(max(count, 1))]
    if isinstance(found[0], Tensor):
        return torch.stack(found)[:count].reshape(*lead, *found[0].shape)
    return [torch.stack(xs)[:count].reshape(*lead, *xs[0].shape) for xs in zip(*found, strict=True)]


def prototypes(support, labels, num_classes):
    """Snell et al. 2017, eq. 1."""

    def one(x, y):
        return torch.stack([x[y == k].mean(0) for k in range(num_classes)])

    return each_task(one, (2, 1), support, labels)


def distances(q, c, metric):
    if metric == "cosine":
        return 1 - unit(q) @ unit(c).T
    square = (q[:, None] - c[None]).square().sum(-1)
    return square if metric == "sqeuclidean" else root(square)


def root(square):
    """Its derivatives at 0 are 0."""
    zero = square == 0
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt())


def unit(x):
    """A zero vector stays one."""
    square = x.square().sum(-1, keepdim=True)
    return torch.where(square == 0, 0, x / torch.where(square == 0, 1, square).sqrt())


def logits_of(q, c, metric, temperature):
    temperature = temperature.reshape(()) if isinstance(temperature, Tensor) else temperature
    return -distances(q, c, metric) / temperature


def log_softmax_of_distances(q, c, metric, temperature):
    return logits_of(q, c, metric, temperature).log_softmax(-1)


def proto_log_softmax(query, prototypes, metric, temperature):
    """Snell et al. 2017, eq. 2."""
    return each_task(lambda q, c: log_softmax_of_distances(q, c, metric, temperature), (2, 2), query, prototypes)


def mean_loss(log_p, y, ignore_index=-100, reduction="mean"):
    """-log p(y) of the examples that count, 0 where there are none."""
    counted = y != ignore_index
    losses = torch.where(counted, -log_p.gather(1, torch.where(counted, y, 0)[:, None])[:, 0], 0)
    if reduction == "none":
        return losses
    return losses.sum() / (max(int(counted.sum()), 1) if reduction == "mean" else 1)


def proto_loss(
    query, prototypes, targets, metric, temperature, ignore_index, reduction, exclude, margin, bias, classes, label_smoothing
):  # fmt: skip
    """Snell et al. 2017, algorithm 1; labels smoothed as by torch.nn.CrossEntropyLoss, p of a class the sum over its prototypes; targets
    of floating point as class probabilities there."""

    def one(q, c, y, out, b, k):
        z = logits_of(q, c, metric, temperature) + b
        place = torch.arange(z.shape[1])
        if soft:
            gone = out[:, None] == place
            log_p = torch.where(gone, 0, torch.where(gone, -torch.inf, z).log_softmax(1))
            mixed = (1 - label_smoothing) * (y * log_p).sum(1)
            mixed = mixed + (label_smoothing * log_p.sum(1) / (~gone).sum(1) if label_smoothing else 0)
            return mean_loss(mixed[:, None], torch.zeros_like(out), -100, reduction)
        gone = (out[:, None] == place) & (y != ignore_index)[:, None]
        same = k == y[:, None]
        # one softmax: a second one would mend the rounding of p - 1, which tolerance.py knows
        log_p = torch.where(gone, -torch.inf, z - margin * same.to(z.dtype)).log_softmax(1)
        if classes is None:
            own = torch.where(same, log_p, 0).sum(1)
        else:
            own = torch.where(same & ~gone | ~same.any(1)[:, None], log_p, -torch.inf).logsumexp(1)
        of_all = torch.where(gone, 0, log_p).sum(1) / (~gone).sum(1)
        mixed = (1 - label_smoothing) * own + (label_smoothing * of_all if label_smoothing else 0)
        return mean_loss(mixed[:, None], torch.where(y == ignore_index, -100, 0), -100, reduction)

    soft, ways = targets.is_floating_point(), prototypes.shape[-2]
    of_queries = targets[..., 0].long() if soft else targets
    exclude = torch.full_like(of_queries, -1) if exclude is None else exclude
    bias = query.new_zeros(ways) if bias is None else bias
    kinds = torch.arange(ways) if classes is None else classes
    return each_task(one, (2, 2, 1 + soft, 1, 1, 1), query, prototypes, targets, exclude, bias, kinds)


def matching_log_probs(query, support, labels, num_classes, metric, temperature):
    """Vinyals et al. 2016, eq. 1 and 2."""

    def one(q, x, y):
        log_a = log_softmax_of_distances(q, x, metric, temperature)
        return torch.stack([log_a[:, y == k].logsumexp(1) for k in range(num_classes)], 1)

    return each_task(one, (2, 2, 1), query, support, labels)


def each_tensor(one, lr, *trees):
    """one(rate, *tensors) of every tensor of the trees: its results, one kind after the other."""
    if isinstance(trees[0], Tensor):
        return one(lr, *trees)
    each = isinstance(lr, list | tuple | dict)
    keys = list(trees[0]) if isinstance(trees[0], dict) else range(len(trees[0]))
    found = [one(lr[k] if each else lr, *(tree[k] for tree in trees)) for k in keys]
    return [x for kind in zip(*found, strict=True) for x in kind]


def sgd_step(params, grads, lr):
    """Finn et al. 2017, eq. 1; Li et al. 2017, eq. 2."""
    return each_tensor(lambda rate, p, g: [p - rate * g], lr, params, grads)


def decayed(g, p, weight_decay):
    """As torch.optim has it: without a decay, a NaN of p does not reach g."""
    return g + weight_decay * p if isinstance(weight_decay, Tensor) or weight_decay else g


def momentum_step(params, grads, velocities, lr, momentum, weight_decay, nesterov):
    """torch.optim.SGD's documentation."""

    def one(rate, p, g, b):
        g = decayed(g, p, weight_decay)
        b = momentum * b + g
        return [p - rate * (g + momentum * b if nesterov else b), b]

    return each_tensor(one, lr, params, grads, velocities)


def adam_step(params, grads, means, squares, lr, step, betas, eps, weight_decay):
    """Kingma and Ba 2015, algorithm 1."""

    def one(rate, p, g, m, v):
        g = decayed(g, p, weight_decay)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        return [p - rate * (m / (1 - betas[0] ** step)) / (root(v / (1 - betas[1] ** step)) + eps), m, v]

    return each_tensor(one, lr, params, grads, means, squares)


def task_conv2d(x, weight, bias, stride, padding):
    def one(x, w, b):
        if not len(w):  # no output channels, which torch refuses
            return F.conv2d(x, w.sum(0)[None] * 0 + x.new_ones(1, *w.shape[1:]), None, stride, padding)[:, :0]
        return F.conv2d(x, w, b, stride, padding)

    return each_task(one, (4, 4, 1), x, weight, bias)
