"""Whole meta-iterations of MAML on an MLP, as they are written in PyTorch: what the inner-loop ops race against.

A way has the arguments of `mlp_meta_loss` and gives the mean of the tasks' query losses.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import fastmeta
from measure import peers
from measure.contenders import compiled, mlp, pairs
from measure.peers import learned

INDUCTOR = {  # options of the compiler, the best first
    "cpp-wrapper": {"cpp_wrapper": True},
    "": None,
    "max-autotune": {"cpp_wrapper": True, "max_autotune": True},  # takes twice as long to compile
}


class Workload(NamedTuple):
    widths: tuple
    tasks: int
    support: int
    query: int
    steps: int
    loss: str = "mse"
    rate_per_parameter: bool = False  # and learned
    inputs_need_grad: bool = False

    @property
    def options(self):
        return {"steps": self.steps, "loss": self.loss}

    @property
    def sizes(self):
        return self.widths, self.support, self.query


SINUSOID = Workload((1, 40, 40, 1), tasks=25, support=10, query=10, steps=1)
HEAD = Workload((64, 5), tasks=32, support=25, query=75, steps=5, loss="cross_entropy", inputs_need_grad=True)
LARGE = Workload((784, 64, 64, 10), tasks=8, support=100, query=100, steps=1, loss="cross_entropy")
WORKLOADS = {
    "W1 sinusoid MAML K1": SINUSOID,
    "W1 sinusoid MAML K5": SINUSOID._replace(steps=5),
    "W2 sinusoid Meta-SGD K1": SINUSOID._replace(rate_per_parameter=True),
    "W2 sinusoid Meta-SGD K5": SINUSOID._replace(steps=5, rate_per_parameter=True),
    "W3 linear head D64 K5": HEAD,
    "W3 linear head D1600 K5": HEAD._replace(widths=(1600, 5)),
    "large MLP 784-64-64-10 K1": LARGE,
    "large MLP 784-64-64-10 K5": LARGE._replace(steps=5),
}


class Arguments(NamedTuple):
    params: list
    lr: float | list
    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor


def arguments(workload):
    """Random ones. Those that the workload learns ask for gradients."""
    widths, classes = workload.widths, workload.widths[-1] if workload.loss == "cross_entropy" else None
    params, support_x, support_y = mlp(widths, workload.tasks, workload.support, classes)
    _, query_x, query_y = mlp(widths, workload.tasks, workload.query, classes)
    lr = [torch.full_like(p, 0.01).requires_grad_() for p in params] if workload.rate_per_parameter else 0.01
    for x in (support_x, query_x):
        x.requires_grad_(workload.inputs_need_grad)
    return Arguments(params, lr, support_x, support_y, query_x, query_y)


def contenders(arguments, steps, loss):
    """{name: a meta-iteration} by every eager way and library, and by what compiles first."""
    ways = {"by hand": by_hand, "autograd": by_autograd, "vmap": by_vmap, "loop": by_loop}
    one_graph = {"vmap": by_vmap, "by hand": by_hand, "func.grad": by_func}
    if len(arguments.params) == 2:
        ways["gram"] = by_gram
        one_graph = {"gram": by_gram} | one_graph
    eager_ways = {name: eager(partial(way, steps=steps, loss=loss), arguments) for name, way in ways.items()}
    made = {
        f"compiled {name} {kind}".strip(): in_one_graph(partial(way, steps=steps, loss=loss), arguments, inductor)
        for name, way in one_graph.items()
        for kind, inductor in INDUCTOR.items()
        if kind != "max-autotune" or way is by_func
    }
    return eager_ways | peers.contenders(arguments, steps, loss), made


def meta_iteration(way, workload):
    return eager(partial(way, **workload.options), arguments(workload))


def eager(way, arguments):
    """A call of `way`, and autograd's gradients to what is learned."""

    def run():
        value = way(*arguments)
        return value.detach(), *torch.autograd.grad(value, learned(arguments))

    return run


def in_one_graph(way, arguments, inductor=None):
    """`way` and torch.func's gradients to the same, compiled together; `inductor`: options of the compiler."""
    needed = tuple(i for i, a in enumerate(arguments) if learned(a))
    plain = tree_map_only(Tensor, torch.detach, tuple(arguments))
    fn = compiled(torch.func.grad_and_value(way, needed), inductor)

    def run():
        gradients, value = fn(*plain)
        return value, *tree_leaves(gradients)

    return run


def in_one_op(*arguments, **options):
    """Ours."""
    return fastmeta.mlp_meta_loss(*arguments, **options).mean()


def in_two_ops(params, lr, support_x, support_y, query_x, query_y, steps, loss):
    adapted = fastmeta.mlp_adapt(params, lr, support_x, support_y, steps=steps, loss=loss)
    return fastmeta.mlp_loss(adapted, query_x, query_y, loss=loss).mean()


def by_hand(params, lr, support_x, support_y, query_x, query_y, steps, loss):
    """All tasks in one product a layer, backpropagation written out."""
    for _ in range(steps):
        xs = layer_inputs(params, support_x)
        params = descend(params, lr, xs, output_gradient(outputs(params, xs), support_y, loss))
    return total_loss(forward(params, query_x), query_y, loss) / len(query_x)


def adapted_loss(gradients, params, lr, support_x, support_y, query_x, query_y, steps, loss):
    """The query loss after the inner steps, of one task or summed over all."""
    for _ in range(steps):
        slopes = gradients(lambda params: total_loss(forward(params, support_x), support_y, loss), params)
        params = step(params, lr, slopes)
    return total_loss(forward(params, query_x), query_y, loss)


def of_autograd(fn, params):
    return torch.autograd.grad(fn(params), params, create_graph=True)


def of_func(fn, params):
    return torch.func.grad(fn)(params)


def at_once(gradients, params, lr, *data, steps, loss):
    """All tasks in one product a layer."""
    params = [p.expand(len(data[0]), *p.shape) for p in params]
    return adapted_loss(gradients, params, lr, *data, steps, loss) / len(data[0])


by_autograd = partial(at_once, of_autograd)
by_func = partial(at_once, of_func)  # which torch.compile can trace


def by_vmap(params, lr, *data, steps, loss):
    """One task by torch.func, vmapped over the tasks."""
    return torch.vmap(lambda *task: adapted_loss(of_func, params, lr, *task, steps, loss))(*data).mean()


def by_loop(params, lr, *data, steps, loss):
    """Task after task with functional parameters, as torchmeta's gradient_update_parameters does."""
    tasks = zip(*data, strict=True)
    return torch.stack([adapted_loss(of_autograd, params, lr, *task, steps, loss) for task in tasks]).mean()


def by_gram(params, lr, support_x, support_y, query_x, query_y, steps, loss):
    """A linear head by the products of the support's features: a step changes their logits by -lr (x x' + 1) dz."""
    weight, bias = params
    logits, products = F.linear(support_x, weight, bias), support_x @ support_x.mT + 1
    change = 0
    for _ in range(steps):
        dz = output_gradient(logits, support_y, loss)
        logits, change = logits - lr * products @ dz, change - lr * dz
    adapted = [weight + change.mT @ support_x, bias + change.sum(-2)]
    return total_loss(forward(adapted, query_x), query_y, loss) / len(query_x)


def forward(params, x):
    return outputs(params, layer_inputs(params, x))


def layer_inputs(params, x):
    """What each layer takes, all but the last layer applied."""
    xs = [x]
    for weight, bias in pairs(params[:-2]):
        xs.append(linear(xs[-1], weight, bias).relu())
    return xs


def outputs(params, xs):
    return linear(xs[-1], *params[-2:])


def linear(x, weight, bias):
    """Shared weights, or each task's."""
    return F.linear(x, weight, bias) if weight.ndim == 2 else torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)


def output_gradient(outputs, targets, loss):
    """d(mean loss of a task)/d(outputs)."""
    if loss == "mse":
        return (outputs - targets) * (2 / targets[0].numel())
    return (outputs.softmax(-1) - F.one_hot(targets, outputs.shape[-1])) / targets.shape[-1]


def descend(params, lr, xs, dz):
    """A step of SGD on each task, backwards through the layers; one rate for all is a factor of the products."""
    new = []
    for i in reversed(range(len(xs))):
        weight, bias = params[2 * i], params[2 * i + 1]
        if isinstance(lr, float):
            tasks = weight.expand(len(dz), *weight.shape[-2:])
            new = [torch.baddbmm(tasks, dz.mT, xs[i], alpha=-lr), bias - lr * dz.sum(-2), *new]
        else:
            new = [weight - lr[2 * i] * (dz.mT @ xs[i]), bias - lr[2 * i + 1] * dz.sum(-2), *new]
        if i:
            dz = (dz @ weight) * (xs[i] > 0)
    return new


def step(params, lr, gradients):
    rates = [lr] * len(params) if isinstance(lr, float) else lr
    return [p - rate * g for p, rate, g in zip(params, rates, gradients, strict=True)]


def total_loss(outputs, targets, loss):
    """The sum of the tasks' mean losses, or one task's."""
    tasks = outputs.shape[:-2].numel()
    if loss == "mse":
        return F.mse_loss(outputs, targets) * tasks
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten()) * tasks
