"""Contenders that several benches share."""

import functools
import importlib
import itertools
import math
import os
import subprocess
import sys

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

import fastmeta
from fastmeta._dispatch import tensors_of
from harness import installed_peers
from harness.places import WITH_TOOLS
from measure import machine

SMALL = 2**22  # bytes: larger inputs are read from memory


def on_backends(fn, reference=True):
    """`fn` on fastmeta's native kernels (`race` forces them), and on the PyTorch reference unless that is too large to run."""

    def on_reference():
        with fastmeta.backend("reference"):
            return fn()

    return {"ext": fn} | ({"reference": on_reference} if reference else {})


def compiled(fn, inductor=None):
    """`inductor`: options of the compiler, other than its default."""
    torch._dynamo.config.recompile_limit = 64  # one function is compiled for every workload, with every set of options
    return torch.compile(fn, fullgraph=True, dynamic=False, options=inductor)


def by_reference(op, static, *tensors):
    """The op's formula as anybody would write it: {name: eager way} and {name: way that is compiled first}, functions of
    `tensors`. A list among those is shared by the tasks, which all others have in front."""

    def formula(*given):
        return getattr(fastmeta.reference, op)(*given, *static)

    axes = tuple(None if isinstance(t, list) else 0 for t in tensors)
    return {"vmap": torch.vmap(formula, axes)}, {"compiled": compiled(formula)}


def forward_and_backward(fn, leaves):
    """fn(*leaves) and its gradients to the leaves."""
    copies = rotation(leaves)

    def run():
        leaves = next(copies)
        value = fn(*leaves)
        return value.detach(), *backward([value], leaves)

    return run


class AtOnce:
    """value_and_grad of an op's losses, in the arguments at `argnums`. Checked are, as of all contenders, the losses' mean and its
    gradients; `like_backward`: from the cotangent that `backward` sends."""

    counted = False  # under the mode that counts operations it takes another way

    def __init__(self, op, argnums, arguments, like_backward=False, **options):
        self.like_backward = like_backward
        self.function = functools.partial(fastmeta.value_and_grad(op, argnums), **options)
        self.turns = rotation(tree_map_only(torch.Tensor, torch.detach, tuple(arguments)))

    def __call__(self):
        return self.function(*next(self.turns))

    def results(self):
        losses, gradients = self()
        value = losses.mean()
        scale = cotangent(value.shape, value.dtype, value.device) if self.like_backward else 1
        return value, *(scale * g / losses.numel() for g in tensors_of(gradients))


def rotation(tree):
    """The copies of a tree of tensors in turn."""
    return itertools.cycle(copies(tree))


def copies(tree):
    """Of a tree of tensors, as many as do not fit into the cache together; of a small tree, which in a training is still in the cache,
    itself."""
    tensors = [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]
    size = sum(t.nbytes for t in tensors)
    more = math.ceil(machine.cache(tensors[0].device) / size) if size > SMALL else 0
    return [tree, *(tree_map_only(torch.Tensor, _copy, tree) for _ in range(more))]


def _copy(tensor):
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def backward(outputs, leaves):
    """Gradients of the outputs to the leaves, from cotangents in memory of their own, as a loss behind them would send."""
    return torch.autograd.grad(outputs, leaves, [cotangent(y.shape, y.dtype, y.device) for y in outputs])


@functools.cache
def cotangent(shape, dtype, device):
    """The same numbers in every dtype."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float32)
    return drawn.to(device, dtype)


def in_new_process(*words, **environment):
    """The number that Python prints, given a script or -m and a module, then arguments."""
    env = os.environ | {"PYTHONPATH": WITH_TOOLS["PYTHONPATH"]} | environment
    command = [sys.executable, *map(str, words)]
    return float(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)


def mlp(widths, tasks, examples, classes=None):
    """Shared parameters that ask for gradients, inputs and targets."""
    params = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        params += [(torch.randn(outputs, inputs) / inputs**0.5).requires_grad_(), torch.zeros(outputs).requires_grad_()]
    x = torch.randn(tasks, examples, widths[0])
    if classes:
        return params, x, torch.randint(0, classes, (tasks, examples))
    return params, x, torch.randn(tasks, examples, widths[-1])


CONV4 = (fastmeta.ConvBlock(),) * 4


def conv4(width, tasks, examples, ways=5):
    """A Conv4 on images 28 x 28: shared parameters that ask for gradients, one list for the op; images and labels."""
    params = []
    for inputs in (1, width, width, width):
        weight = torch.randn(width, inputs, 3, 3) / (9 * inputs) ** 0.5
        params += [weight, torch.zeros(width), torch.ones(width), torch.zeros(width)]
    params += [torch.randn(ways, width) / width**0.5, torch.zeros(ways)]
    x = torch.randn(tasks, examples, 1, 28, 28)
    return [p.requires_grad_() for p in params], x, torch.randint(0, ways, (tasks, examples))


def pairs(params):
    """(weight, bias) of each layer."""
    return zip(params[::2], params[1::2], strict=True)


def imported(module):
    """None where it cannot be imported."""
    return _import(module)[0]


def why_missing(module):
    """Why it cannot be imported; None where it can."""
    return _import(module)[1]


@functools.cache
def _import(module):
    """Libraries whose imports ask for more than they need are loaded as the tests do."""
    name = module.partition(".")[0]
    try:
        if name in installed_peers.PEERS:
            installed_peers.load(name)
        return importlib.import_module(module), None
    except ImportError as error:
        return None, str(error)
