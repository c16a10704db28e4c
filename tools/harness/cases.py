"""One small example of every op, as a function of its differentiable tensors: what the tests that hold for all ops run on."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastmeta
from harness import conv_cases, mlp_calls, mlp_cases
from harness.compare import outputs
from harness.device import DEVICE

# The backends an op must have on this device, without exception.
PROTO = ("ext", "triton", "reference") if DEVICE == "cpu" else ("triton", "reference")
KERNELS = tuple(name for name in PROTO if name != "reference")
MLP = ("ext", "emulated", "reference") if DEVICE == "cpu" else ("ext", "reference")
CONV = ("ext", "reference")
ON_CPU = (
    CONV if DEVICE == "cpu" else ("reference",)
)  # of encoders, and of steps with batches of their own and an optimiser
TRITON = ("triton", "reference")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BACKENDS = {
    "matching_log_probs": PROTO,
    "prototypes": PROTO,
    "proto_log_softmax": PROTO,
    "proto_loss": PROTO,
    "proto_loss_loo": PROTO,
    "symmetric_loss": PROTO,
    "sgd_step": PROTO,
    "momentum_step": PROTO,
    "adam_step": PROTO,
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
# Other forms of an op, with derivatives of their own.
VARIANTS = {
    "proto_loss_replaced": PROTO,
    "proto_loss_soft": PROTO,
    "mlp_hvp_ggn": MLP,
    "conv_forward_features": ON_CPU,
    "conv_forward_residual": ON_CPU,
}
VARIANTS |= {f"mlp_{name}_weighted": MLP for name in ("loss", "grad", "hvp", "adapt", "meta_loss")}
VARIANTS |= {f"conv_{name}_weighted": CONV for name in ("grad", "hvp", "meta_loss")}
VARIANTS |= {f"{name}_steps": ON_CPU for name in ("mlp_adapt", "mlp_meta_loss", "conv_meta_loss")}
VARIANTS |= {f"mlp_{name}_residual": ON_CPU for name in ("hvp", "meta_loss")}
# Of which the derivatives are tested, and the transforms by forms of the same code: that saves minutes.
LIKE_OTHERS = (
    "proto_loss_replaced",
    "proto_loss_soft",
    "mlp_grad_weighted",
    "mlp_adapt_weighted",
    "mlp_loss_weighted",
    "mlp_hvp_residual",
    "conv_grad_weighted",
    "conv_hvp_weighted",
    "mlp_adapt_steps",
    "conv_meta_loss_steps",
)
# Of the forms with a batch for each step.
OPTIMISERS = {
    "mlp_adapt": lambda lr: fastmeta.SGD(lr, 0.7, 0.1, nesterov=True),
    "mlp_meta_loss": lambda lr: fastmeta.Adam(lr, (0.7, 0.8), 0.1, 0.1),
    "conv_meta_loss": lambda lr: fastmeta.SGD(lr, 0.5),
}


def interpreted(backend: str) -> bool:
    """Whether its kernels run in Triton's interpreter, which is slow: there some dtypes meet fewer shapes."""
    return backend == "triton" and DEVICE == "cpu"


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


def _proto_loss_replaced(lead, dtype):
    """What does not count, a margin, and distances given."""
    targets, exclude = torch.tensor([2, -100, 0]).expand(*lead, 3), torch.tensor([1, 2, -1]).expand(*lead, 3)

    def fn(query, prototypes, temperature, given):
        return fastmeta.proto_loss(
            query, prototypes, targets, temperature=temperature, exclude=exclude, margin=0.3, target_distance=given
        )

    tensors = [randn(*lead, 3, 2, dtype=dtype), randn(*lead, 4, 2, dtype=dtype), torch.tensor(1.7, dtype=dtype)]
    return Case(fn, [*tensors, randn(*lead, 3, dtype=dtype).square()])


def _proto_loss_soft(lead, dtype):
    """Shares of all prototypes as targets, and a bias of each."""
    exclude, counts = torch.tensor([-1, 1, -1]).expand(*lead, 3), torch.ones(3, 4, dtype=dtype)
    counts[1, 1] = 0

    def fn(query, prototypes, shares, bias):
        return fastmeta.proto_loss(query, prototypes, shares * counts, exclude=exclude, bias=bias, label_smoothing=0.1)

    tensors = [randn(*lead, 3, 2, dtype=dtype), randn(*lead, 4, 2, dtype=dtype), randn(*lead, 3, 4, dtype=dtype)]
    return Case(fn, [*tensors, randn(*lead, 4, dtype=dtype)])


def _proto_loss_loo(lead, dtype):
    labels = torch.tensor([1, 0, 1, 0, 1]).expand(*lead, 5)

    def fn(embeddings, temperature):
        return fastmeta.proto_loss_loo(embeddings, labels, 2, metric="cosine", temperature=temperature)

    return Case(fn, [randn(*lead, 5, 3, dtype=dtype), torch.tensor(0.7, dtype=dtype)])


def _symmetric_loss(lead, dtype):
    def fn(query, keys, temperature):
        return fastmeta.symmetric_loss(query, keys, metric="sqeuclidean", temperature=temperature)

    tensors = [randn(*lead, 3, 2, dtype=dtype), randn(*lead, 3, 2, dtype=dtype), torch.tensor(1.7, dtype=dtype)]
    return Case(fn, tensors)


def _sgd_step(lead, dtype):
    def fn(w, b, dw, db, alpha_w, alpha_b):
        return tuple(fastmeta.sgd_step([w, b], [dw, db], [alpha_w, alpha_b]))

    shapes = [(*lead, 2, 3), (2,), (*lead, 2, 3), (*lead, 2), (2, 3), ()]
    return Case(fn, [randn(*shape, dtype=dtype) for shape in shapes])


def _momentum_step(lead, dtype):
    def fn(w, b, dw, db, vw, vb, alpha_w, alpha_b):
        found = fastmeta.momentum_step(
            [w, b], [dw, db], [vw, vb], [alpha_w, alpha_b], momentum=0.9, weight_decay=0.1, nesterov=True
        )
        return outputs(found)

    return Case(fn, [randn(*shape, dtype=dtype) for shape in _with_state(lead, 1)])


def _adam_step(lead, dtype):
    def fn(w, b, dw, db, mw, mb, vw, vb, alpha_w, alpha_b):
        found = fastmeta.adam_step([w, b], [dw, db], [mw, mb], [vw, vb], [alpha_w, alpha_b], step=3, weight_decay=0.1)
        return outputs(found)

    tensors = [randn(*shape, dtype=dtype) for shape in _with_state(lead, 2)]
    tensors[6:8] = [1 + v.square() for v in tensors[6:8]]
    return Case(fn, tensors)


def _with_state(lead, count):
    """The shapes of two parameters, their gradients, state and rates."""
    return [(*lead, 2, 3), (2,), *[(*lead, 2, 3), (*lead, 2)] * (1 + count), (2, 3), ()]


def _task_conv2d(lead, dtype):
    """A stride and a padding; a bias for all tasks."""
    tensors = [randn(*lead, 2, 1, 3, 3, dtype=dtype), randn(*lead, 2, 1, 2, 2, dtype=dtype), randn(2, dtype=dtype)]
    return Case(lambda *t: fastmeta.task_conv2d(*t, stride=2, padding=1), tensors)


def _of_network(op, lead, dtype):
    """Parameters that the tasks share. Smooth: no ReLU in the MLP, and a norm that is smooth where a channel's numbers are few."""
    op, form = re.fullmatch("(.*?)(_ggn|_features|_residual|_weighted|_steps|)", op).groups()
    loss = "mse" if op.endswith(("_grad", "_meta_loss")) else "cross_entropy"
    options = {"T": lead[0] if lead else 1, "loss": loss, "weights": form == "_weighted", "dtype": dtype}
    if op.startswith("mlp"):
        activation = {"mlp_grad": "sigmoid", "mlp_hvp": "gelu"}.get(op, "tanh")
        residual = form == "_residual"
        p = mlp_cases.problem((2 + residual, 4, 3), 5, activation=activation, residual_norm=residual, **options)
    else:
        blocks = conv_cases.RESIDUAL if form == "_residual" else (fastmeta.ConvBlock(),)
        blocks = tuple(block._replace(eps=0.1) for block in blocks)
        p = conv_cases.problem(blocks, 3, channels=2, inputs=1, size=4, ways=2, **options)
        p.params[1] = None  # no bias before the norm
        if form in ("_features", "_residual"):
            p.params[-2:] = [None, None]
    if loss == "cross_entropy":
        p.y[:, 0] = -100
    if form == "_steps":
        p.with_batches(2).optimiser = OPTIMISERS[op]
    function, whole = op.split("_", 1)[1], len(p.flat)
    more = {
        "adapt": ("per element", 2),
        "meta_loss": ("per step", 2),
        "hvp": ("ggn" if form == "_ggn" else "hessian",),
    }
    call, tensors = getattr(mlp_calls, function)(p, *more.get(function, ()))
    if function in ("adapt", "meta_loss"):
        whole += len(p.rates(more[function][0], 2))
    if not lead:
        one = {id(t): t[:, 0] if p.batch_per_step else t[0] for t in (p.x, p.y, p.weights) if t is not None}
        tensors = [*tensors[:whole], *(one.get(id(t), t[0]) for t in tensors[whole:])]
        p.y = one[id(p.y)]

    def fn(*t):
        found = outputs(call(*t))
        return found[0] if len(found) == 1 else found

    return Case(fn, tensors)


def _hvp(lead, dtype):
    def fn(w, v, x):
        return fastmeta.hvp(lambda p: (x @ p).sigmoid().square().sum(), w, v)

    return Case(fn, [randn(2, 3, dtype=dtype), randn(2, 3, dtype=dtype), randn(*lead, 4, 2, dtype=dtype)])


_MAKERS = {op: functools.partial(_of_network, op) for op in BACKENDS | VARIANTS if op.startswith(("mlp_", "conv_"))}
_MAKERS |= {name[1:]: maker for name, maker in list(globals().items()) if name[1:] in BACKENDS | VARIANTS}
EVERYWHERE = [(op, backend) for op, backends in (BACKENDS | VARIANTS).items() for backend in backends]
