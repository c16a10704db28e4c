import pytest
import torch
import torch.nn.functional as F

import fastmeta
from measure.contenders import backward, compiled

SHAPES = [(8, 5, 1, 28, 64), (8, 5, 64, 14, 64)]  # T, n, C, pixels of a side, E: layers of a Conv4-64, 5-way 1-shot


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_task_conv2d(race, shape, second):
    """All gradients of a 3 x 3 convolution, or those of the gradients, as a chain of Hessian-vector products asks for. On a CPU the
    op has no kernel: what "ext" names is then its reference."""
    T, n, C, side, E = shape
    leaves = [torch.randn(size, requires_grad=True) for size in ((T, n, C, side, side), (T, E, C, 3, 3), (T, E))]

    def run(way, backend="auto"):
        def gradients():
            with fastmeta.backend(backend):
                y = way(*leaves)
                if not second:
                    return backward([y], leaves)
                grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
                return backward(grads, leaves)

        return gradients

    eager = {"grouped": grouped, "vmap": torch.vmap(convolution), "loop": loop}
    race(
        f"task_conv2d {'second derivatives' if second else 'fwd+bwd'} T{T} n{n} {C}x{side}x{side} E{E}",
        {"ext": run(ours), "reference": run(ours, "reference")} | {name: run(way) for name, way in eager.items()},
        compiled={} if second else {"compiled": run(compiled(grouped))},  # torch.compile has no second derivative
        mode="second derivatives" if second else "forward + backward",
    )


def ours(x, weight, bias):
    return fastmeta.task_conv2d(x, weight, bias, padding=1)


def convolution(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def loop(*tensors):
    return torch.stack([convolution(*of_task) for of_task in zip(*tensors, strict=True)])


def grouped(x, weight, bias):
    """The channels of all tasks side by side."""
    y = F.conv2d(x.transpose(0, 1).flatten(1, 2), weight.flatten(0, 1), bias.flatten(), padding=1, groups=len(x))
    return y.unflatten(1, (len(x), -1)).transpose(0, 1)
