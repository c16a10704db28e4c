"""Operations of the matrix products that a meta-iteration or a Hessian-vector product cannot do without."""

import itertools

from torch import nn


def meta_iteration(workload):
    """By the layers or, for a linear head, by the Gram matrix of its features, if that is less."""
    of_task = _by_layers(*workload.sizes, workload.steps, workload.inputs_need_grad)
    if len(workload.widths) == 2:
        of_task = min(of_task, _by_gram(*workload.sizes, workload.inputs_need_grad))
    return workload.tasks * of_task


def hvp(widths, examples):
    """One task's: activations, their gradients, the tangents of both and the product; no gradient of the weights."""
    layers, inner = products(widths, examples)
    return 3 * layers + 5 * inner


def _by_layers(widths, support, query, steps, inputs_need_grad):
    of_support, of_query = products(widths, support), products(widths, query)
    first, first_of_query = (layers - inner for layers, inner in (of_support, of_query))
    return of_steps(of_support, of_query, steps) + (steps * 2 * first + first_of_query if inputs_need_grad else 0)


def of_steps(support, query, steps):
    """Of one task with `support` and `query`, the products of a forward pass with all layers and with all but the first: each step with
    its Hessian-vector product, which uses its activations and their gradients again."""
    return steps * (4 * support[0] + 5 * support[1]) + gradients(*query)


def gradients(layers, inner):
    """Of a forward and a backward pass that does not go to the inputs."""
    return 2 * layers + inner


def _by_gram(widths, support, query, inputs_need_grad):
    """The steps themselves are free."""
    of_support, of_query = products(widths, support)[0], products(widths, query)[0]
    gram = 2 * support**2 * widths[0]
    return 4 * of_support + 2 * of_query + gram + (2 * of_support + of_query + gram if inputs_need_grad else 0)


def products(widths, examples):
    """One task's products with the weights of all layers, and of all but the first."""
    of_layers = [2 * examples * inputs * outputs for inputs, outputs in itertools.pairwise(widths)]
    return sum(of_layers), sum(of_layers[1:])


def conv4(width, channels, side, ways, n):
    """As `products`, of n images: four 3 x 3 convolutions, each with half the side of the one before it, and a linear layer."""
    inputs, sides = [channels, width, width, width], [side >> i for i in range(4)]
    of_layers = [2 * n * s * s * 9 * i * width for i, s in zip(inputs, sides, strict=True)]
    head = 2 * n * width * (side // 16) ** 2 * ways
    return sum(of_layers) + head, sum(of_layers[1:]) + head


def encoder(module, x):
    """Of a forward and a backward pass that does not go to the images. A 3 x 3 convolution takes 16 multiply-adds for 4 outputs instead of
    36, but that of the images."""
    of_layers = []

    def count(layer, _, out):
        direct = 2 * out.numel() * layer.weight[0].numel()
        of_layers.append(direct * 16 / 36 if layer.kernel_size == (3, 3) and layer.in_channels > 3 else direct)

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d)]
    module(x)
    for hook in hooks:
        hook.remove()
    return 3 * sum(of_layers) - of_layers[0]
