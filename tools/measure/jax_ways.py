"""The benches' problems in JAX: plain formulas in float32, each jitted with its gradients. Its threads are one for each core, chosen at
the start of the process, whatever torch's number is.

JAX is imported where a way is made.
"""

import importlib.util
import itertools
import os
from functools import partial

import torch
from torch.utils._pytree import tree_leaves, tree_map

from measure.contenders import copies, cotangent, imported, pairs
from measure.peers import learned


def installed():
    return importlib.util.find_spec("jax") is not None


def facts():
    """What a result depends on."""
    return {"jax": f"{imported('jax').__version__}, {len(os.sched_getaffinity(0))} threads in every row"}


class Jitted:
    """A call is `fn` of the arguments and its gradients to what of them asks for gradients; it ends when they are there.

    The arguments, trees of tensors, are made arrays before. `rotating`: each call takes the next of as many copies as do not fit
    into the cache together. `scale`: the cotangent that the gradients are of.
    """

    def __init__(self, fn, arguments, rotating=False, scale=1.0):
        jax = imported("jax")
        needed = tuple(i for i, a in enumerate(arguments) if learned(a))
        numbers = [i for i, a in enumerate(arguments) if not tensors(a)]

        def scaled(*arguments):
            value = fn(*arguments)
            return scale * value, value

        def with_gradients(*arguments):
            (_, value), gradients = jax.value_and_grad(scaled, needed, has_aux=True)(*arguments)
            return value, gradients

        self.fn = jax.jit(with_gradients if needed else fn, static_argnums=numbers)
        self.arguments = itertools.cycle([arrays(given) for given in (copies(arguments) if rotating else [arguments])])
        self.ready = jax.block_until_ready

    def __call__(self):
        return self.ready(self.fn(*next(self.arguments)))

    def results(self):
        return as_tensors(self())


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def arrays(tree):
    """Its tensors as arrays of their own, integers of 32 bits."""
    jnp = imported("jax").numpy
    return tree_map(lambda x: jnp.array(x.detach().cpu().numpy()) if isinstance(x, torch.Tensor) else x, tree)


def as_tensors(tree):
    """Arrays in lists and tuples as a list of tensors."""
    return [torch.from_dlpack(x) for x in tree_leaves(tree)]


def cross_entropy(logits, targets):
    """[..., N] and labels [...] -> the mean."""
    jax = imported("jax")
    log_probs = jax.nn.log_softmax(logits)
    return -jax.numpy.take_along_axis(log_probs, targets[..., None], -1).mean()


def squared_error(outputs, targets):
    return ((outputs - targets) ** 2).mean()


LOSSES = {"mse": squared_error, "cross_entropy": cross_entropy}


def by_mm(query, prototypes, metric):
    """|q|^2 + |c|^2 - 2 q c about the prototypes' mean, as distances.by_mm."""
    jnp = imported("jax").numpy
    centre = prototypes.mean(-2, keepdims=True)
    q, c = query - centre, prototypes - centre
    square = (q**2).sum(-1, keepdims=True) + (c**2).sum(-1)[..., None, :] - 2 * q @ c.mT
    return square if metric == "sqeuclidean" else jnp.sqrt(jnp.maximum(square, 1e-12))


def by_naive(query, prototypes, metric):
    """By differences."""
    jnp = imported("jax").numpy
    square = ((query[..., :, None, :] - prototypes[..., None, :, :]) ** 2).sum(-1)
    return square if metric == "sqeuclidean" else jnp.sqrt(square)


def proto_loss(distances, metric, temperature):
    """A function of queries [..., Q, D], prototypes [..., N, D] and targets [..., Q]."""
    return lambda query, prototypes, targets: cross_entropy(
        -distances(query, prototypes, metric) / temperature, targets
    )


def of_proto_loss(leaves, targets, metric, temperature, naive):
    """{name: way}; `naive`: the differences fit into memory."""
    ways = {"jax mm": by_mm} | ({"jax naive": by_naive} if naive else {})
    scale = cotangent((), torch.float32, torch.device("cpu")).item()
    return {
        name: Jitted(proto_loss(way, metric, temperature), (*leaves, targets), rotating=True, scale=scale)
        for name, way in ways.items()
        if installed()
    }


def mlp(params, x):
    """[W1, b1, W2, b2, ...], ReLU between the layers."""
    jax = imported("jax")
    for weight, bias in pairs(params[:-2]):
        x = jax.nn.relu(x @ weight.T + bias)
    return x @ params[-2].T + params[-1]


def normalised(x, scale, shift):
    """[n, h, w, c], by the batch."""
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) * (scale / imported("jax").numpy.sqrt(variance + 1e-5)) + shift


def pooled(x):
    """[n, h, w, c] -> [n, h / 2, w / 2, c]: the maximum of four slices, which is faster than lax.reduce_window."""
    jnp = imported("jax").numpy
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    return jnp.maximum(jnp.maximum(x[:, ::2, ::2], x[:, 1::2, ::2]), jnp.maximum(x[:, ::2, 1::2], x[:, 1::2, 1::2]))


def conv4(convolve, params, x):
    """Four blocks of convolution, batch norm, ReLU and pooling, then a linear layer where there are parameters left:
    [n, channels, h, w] -> [n, ...]."""
    jax, x = imported("jax"), x.transpose(0, 2, 3, 1)
    for weight, scale, shift in zip(params[:12:3], params[1:12:3], params[2:12:3], strict=True):
        x = pooled(jax.nn.relu(normalised(convolve(x, weight.transpose(2, 3, 1, 0)), scale, shift)))
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return x @ params[12].T + params[13] if len(params) > 12 else x


def resnet12(params, x):
    """Blocks of three convolutions and a 1 x 1 one beside them, each with its batch norm: [n, channels, h, w] -> [n, ...]."""
    jax, x = imported("jax"), x.transpose(0, 2, 3, 1)
    for block in zip(*[iter(params)] * 12, strict=True):
        first, second, third, beside = zip(*[iter(block)] * 3, strict=True)

        def of(layer, x):
            return normalised(by_lax(x, layer[0].transpose(2, 3, 1, 0)), *layer[1:])

        y = jax.nn.leaky_relu(of(second, jax.nn.leaky_relu(of(first, x), 0.1)), 0.1)
        x = pooled(jax.nn.leaky_relu(of(third, y) + of(beside, x), 0.1))
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


class Encoded:
    """The features of images and the gradients to the parameters, jitted; the results are the features."""

    def __init__(self, encode, params, x):
        jax = imported("jax")
        self.arguments, self.ready = arrays((params, x)), jax.block_until_ready

        def features_and_gradients(params, x):
            features, pull = jax.vjp(lambda params: encode(params, x), params)
            return features, pull(jax.numpy.ones_like(features))

        self.fn = jax.jit(features_and_gradients)

    def __call__(self):
        return self.ready(self.fn(*self.arguments))

    def results(self):
        return as_tensors(self()[0])


def of_encoder(encode, params, x):
    return {"jax": Encoded(encode, params, x)} if installed() else {}


def by_lax(x, weight):
    """[n, h, w, c], [3, 3, c, e] -> [n, h, w, e]."""
    lax = imported("jax").lax
    return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def by_patches(x, weight):
    """The same as a product: lax's takes far longer under vmap, where each task has weights of its own."""
    jnp = imported("jax").numpy
    (height, width), padded = x.shape[1:3], jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(taps, -1) @ weight.reshape(-1, weight.shape[-1])


def maml(net, steps, loss, unroll=True):
    """The mean query loss of tasks that adapt the network's parameters, a function of `mlp_meta_loss`'s arguments. Unrolled steps are
    faster, and take longer to compile."""
    jax, loss = imported("jax"), LOSSES[loss]

    def of_task(params, lr, support_x, support_y, query_x, query_y):
        def inner(params, _):
            gradients = jax.grad(lambda params: loss(net(params, support_x), support_y))(params)
            rates = [lr] * len(params) if isinstance(lr, float) else lr
            return [p - rate * g for p, rate, g in zip(params, rates, gradients, strict=True)], None

        adapted, _ = jax.lax.scan(inner, params, length=steps, unroll=unroll)
        return loss(net(adapted, query_x), query_y)

    def of_tasks(params, lr, *data):
        return jax.vmap(lambda *task: of_task(params, lr, *task))(*data).mean()

    return of_tasks


def of_mlp(arguments, steps, loss):
    """{name: way} of a meta-iteration."""
    return {"jax": Jitted(maml(mlp, steps, loss), tuple(arguments))} if installed() else {}


def of_conv4(arguments, steps):
    """The same of MAML on Conv4."""
    net = partial(conv4, by_patches)
    return {"jax": Jitted(maml(net, steps, "cross_entropy", False), tuple(arguments))} if installed() else {}


def of_protonet(params, data, temperature, ways):
    return {"jax": Jitted(protonet(temperature, ways), (params, *data))} if installed() else {}


def protonet(temperature, ways):
    """ProtoNet's loss on Conv4, squared distances; the support is ordered by shot, then label."""

    def of_tasks(params, support_x, support_y, query_x, query_y):
        jnp = imported("jax").numpy
        both = jnp.concatenate([support_x, query_x], 1)  # [T, S + Q, ...]
        features = conv4(by_lax, params, both.reshape(-1, *both.shape[2:])).reshape(*both.shape[:2], -1)
        support, query = features[:, : support_x.shape[1]], features[:, support_x.shape[1] :]
        centres = support.reshape(len(support), -1, ways, support.shape[-1]).mean(1)
        return cross_entropy(-by_mm(query, centres, "sqeuclidean") / temperature, query_y)

    return of_tasks
