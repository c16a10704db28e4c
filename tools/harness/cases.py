"""One small example of every op, as a function of its differentiable tensors: what the tests that hold for all ops run on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastmeta
from harness.device import DEVICE

# The backends an op must have on this device, without exception.
PROTO = ("ext", "triton", "reference") if DEVICE == "cpu" else ("triton", "reference")
MLP = ("ext", "emulated", "reference") if DEVICE == "cpu" else ("ext", "reference")
CONV = ("ext", "reference") if DEVICE == "cpu" else ("reference",)
TRITON = ("triton", "reference")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BACKENDS = {
    "matching_log_probs": PROTO,
    "prototypes": PROTO,
    "proto_log_softmax": PROTO,
    "proto_loss": PROTO,
    "sgd_step": PROTO,
    "task_conv2d": TRITON,
    "mlp_forward": MLP,
    "mlp_loss": MLP,
    "mlp_grad": MLP,
    "mlp_hvp": MLP,
    "mlp_adapt": MLP,
    "mlp_meta_loss": MLP,
    "conv_forward": CONV,
    "conv_loss": CONV,
    "conv_grad": CONV,
    "conv_hvp": CONV,
    "conv_adapt": CONV,
    "conv_meta_loss": CONV,
    "hvp": ("reference",),
}
OPS = sorted(BACKENDS)
VARIANTS = {"mlp_hvp_ggn": MLP}  # other forms of an op, with derivatives of their own


@dataclass
class Case:
    """`fn(*tensors)` gives a tensor or a tuple of tensors."""

    fn: Callable
    tensors: list[Tensor]


def case(op: str, tasks: int | None = 2, dtype: torch.dtype = torch.float64) -> Case:
    """A case of `op` with `tasks` tasks in front, or none."""
    return _MAKERS[op](() if tasks is None else (tasks,), dtype)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def _prototypes(lead, dtype):
    labels = torch.tensor([1, 0, 1, 2]).expand(*lead, 4)
    return Case(lambda s: fastmeta.prototypes(s, labels, 3), [randn(*lead, 4, 2, dtype=dtype)])


def _proto_log_softmax(lead, dtype):
    def fn(query, prototypes, temperature):
        return fastmeta.proto_log_softmax(query, prototypes, temperature=temperature)

    tensors = [randn(*lead, 3, 2, dtype=dtype), randn(*lead, 4, 2, dtype=dtype), torch.tensor(0.7, dtype=dtype)]
    return Case(fn, tensors)


def _matching_log_probs(lead, dtype):
    labels = torch.tensor([1, 0, 1, 2, 0]).expand(*lead, 5)

    def fn(query, support, temperature):
        return fastmeta.matching_log_probs(query, support, labels, 3, temperature=temperature)

    tensors = [randn(*lead, 3, 4, dtype=dtype), randn(*lead, 5, 4, dtype=dtype), torch.tensor(0.3, dtype=dtype)]
    return Case(fn, tensors)


def _proto_loss(lead, dtype):
    targets = torch.tensor([2, -100, 0]).expand(*lead, 3)

    def fn(query, prototypes, temperature):
        return fastmeta.proto_loss(query, prototypes, targets, metric="sqeuclidean", temperature=temperature)

    tensors = [randn(*lead, 3, 2, dtype=dtype), randn(*lead, 4, 2, dtype=dtype), torch.tensor(1.7, dtype=dtype)]
    return Case(fn, tensors)


def _sgd_step(lead, dtype):
    def fn(w, b, dw, db, alpha_w, alpha_b):
        return tuple(fastmeta.sgd_step([w, b], [dw, db], [alpha_w, alpha_b]))

    shapes = [(*lead, 2, 3), (2,), (*lead, 2, 3), (*lead, 2), (2, 3), ()]
    return Case(fn, [randn(*shape, dtype=dtype) for shape in shapes])


def _task_conv2d(lead, dtype):
    """A stride and a padding; a bias for all tasks."""
    tensors = [randn(*lead, 2, 1, 3, 3, dtype=dtype), randn(*lead, 2, 1, 2, 2, dtype=dtype), randn(2, dtype=dtype)]
    return Case(lambda *t: fastmeta.task_conv2d(*t, stride=2, padding=1), tensors)


def _mlp(lead, dtype):
    """Shared weights of two layers, tanh so that second derivatives are smooth; inputs and labels."""
    params = [randn(4, 2, dtype=dtype), randn(4, dtype=dtype), randn(3, 4, dtype=dtype) / 2, randn(3, dtype=dtype)]
    return params, randn(*lead, 5, 2, dtype=dtype), torch.tensor([0, 2, 1, -100, 1]).expand(*lead, 5)


def _mlp_forward(lead, dtype):
    params, x, _ = _mlp(lead, dtype)
    return Case(lambda *t: fastmeta.mlp_forward(t[:4], t[4], activation="tanh"), [*params, x])


def _mlp_loss(lead, dtype):
    params, x, y = _mlp(lead, dtype)
    return Case(lambda *t: fastmeta.mlp_loss(t[:4], t[4], y, activation="tanh"), [*params, x])


def _mlp_grad(lead, dtype):
    params, x, _ = _mlp(lead, dtype)

    def fn(*t):
        loss, grads = fastmeta.mlp_grad(t[:4], t[4], t[5], activation="sigmoid", loss="mse")
        return (loss, *grads)

    return Case(fn, [*params, x, randn(*lead, 5, 3, dtype=dtype)])


def _mlp_hvp(lead, dtype):
    params, x, y = _mlp(lead, dtype)
    vectors = [randn(*lead, *p.shape, dtype=dtype) for p in params]
    return Case(lambda *t: tuple(fastmeta.mlp_hvp(t[:4], t[4:8], t[8], y, activation="gelu")), [*params, *vectors, x])


def _mlp_hvp_ggn(lead, dtype):
    params, x, y = _mlp(lead, dtype)
    vectors = [randn(*lead, *p.shape, dtype=dtype) for p in params]

    def fn(*t):
        return tuple(fastmeta.mlp_hvp(t[:4], t[4:8], t[8], y, activation="tanh", curvature="ggn"))

    return Case(fn, [*params, *vectors, x])


def _mlp_adapt(lead, dtype):
    params, x, y = _mlp(lead, dtype)
    rates = [torch.rand_like(p) for p in params]

    def fn(*t):
        return tuple(fastmeta.mlp_adapt(t[:4], t[4:8], t[8], y, steps=2, activation="tanh"))

    return Case(fn, [*params, *rates, x])


def _mlp_meta_loss(lead, dtype):
    params, x, y = _mlp(lead, dtype)

    def fn(*t):
        return fastmeta.mlp_meta_loss(t[:4], t[4], t[5], y, t[6], y, steps=2, activation="tanh")

    return Case(fn, [*params, torch.tensor([0.3, 0.1], dtype=dtype), x, randn(*lead, 5, 2, dtype=dtype)])


BLOCKS = [fastmeta.ConvBlock(eps=0.1)]  # so that the norm is smooth where a channel's numbers are few


def _conv(lead, dtype):
    """One block, shared by the tasks: 3 x 3, batch norm, ReLU, max-pool; images and labels."""
    params = [randn(2, 1, 3, 3, dtype=dtype), 1 + randn(2, dtype=dtype) / 4, randn(2, dtype=dtype)]
    params += [randn(2, 8, dtype=dtype) / 3, randn(2, dtype=dtype)]
    return params, randn(*lead, 3, 1, 4, 4, dtype=dtype), torch.tensor([0, -100, 1]).expand(*lead, 3)


def _slots(t):
    """No bias before the norm."""
    return [t[0], None, *t[1:5]]


def _conv_forward(lead, dtype):
    params, x, _ = _conv(lead, dtype)
    return Case(lambda *t: fastmeta.conv_forward(_slots(t), t[5], blocks=BLOCKS), [*params, x])


def _conv_loss(lead, dtype):
    params, x, y = _conv(lead, dtype)
    return Case(lambda *t: fastmeta.conv_loss(_slots(t), t[5], y, blocks=BLOCKS), [*params, x])


def _conv_grad(lead, dtype):
    params, x, _ = _conv(lead, dtype)

    def fn(*t):
        loss, grads = fastmeta.conv_grad(_slots(t), t[5], t[6], blocks=BLOCKS, loss="mse")
        return (loss, *(g for g in grads if g is not None))

    return Case(fn, [*params, x, randn(*lead, 3, 2, dtype=dtype)])


def _conv_hvp(lead, dtype):
    params, x, y = _conv(lead, dtype)
    vectors = [randn(*lead, *p.shape, dtype=dtype) for p in params]

    def fn(*t):
        found = fastmeta.conv_hvp(_slots(t), _slots(t[5:10]), t[10], y, blocks=BLOCKS)
        return tuple(v for v in found if v is not None)

    return Case(fn, [*params, *vectors, x])


def _conv_adapt(lead, dtype):
    params, x, y = _conv(lead, dtype)
    rates = [torch.rand_like(p) / 4 for p in params]

    def fn(*t):
        found = fastmeta.conv_adapt(_slots(t), _slots(t[5:10]), t[10], y, blocks=BLOCKS, steps=2)
        return tuple(v for v in found if v is not None)

    return Case(fn, [*params, *rates, x])


def _conv_meta_loss(lead, dtype):
    params, x, y = _conv(lead, dtype)

    def fn(*t):
        return fastmeta.conv_meta_loss(_slots(t), t[5], t[6], y, t[7], y, blocks=BLOCKS, steps=2)

    return Case(fn, [*params, torch.tensor([0.3, 0.1], dtype=dtype), x, randn(*lead, 3, 1, 4, 4, dtype=dtype)])


def _hvp(lead, dtype):
    def fn(w, v, x):
        return fastmeta.hvp(lambda p: (x @ p).sigmoid().square().sum(), w, v)

    return Case(fn, [randn(2, 3, dtype=dtype), randn(2, 3, dtype=dtype), randn(*lead, 4, 2, dtype=dtype)])


_MAKERS = {name[1:]: maker for name, maker in list(globals().items()) if name[1:] in BACKENDS | VARIANTS}
EVERYWHERE = [(op, backend) for op, backends in (BACKENDS | VARIANTS).items() for backend in backends]
