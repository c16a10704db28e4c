"""Whole meta-iterations in JAX, each one jitted call: draw, gradients, Adam."""

import math

from measure.contenders import imported
from measure.jax_ways import arrays, as_tensors
from measure.meta_iterations import POINTS, QUERIES, SHOTS, WAYS, have_moved


class JaxTraining:
    """As meta_iterations.Training. `loss(params, *tasks)`; `draw(key)` -> tasks, or `draw(key, images)`."""

    def __init__(self, draw, loss, params, problem, batch):
        jax = imported("jax")
        self.first = arrays(list(params))
        self.images = [] if problem.images is None else [arrays(problem.images)]
        zeros = [0 * p for p in self.first]
        self.state = self.first, zeros, zeros, jax.numpy.zeros(()), jax.random.key(0)
        gradients = jax.value_and_grad(loss)

        def step(params, means, squares, count, key, *images):
            key, of_tasks = jax.random.split(key)
            value, found = gradients(params, *draw(of_tasks, *images))
            params, means, squares = adam(problem.lr, params, found, means, squares, count + 1)
            return (params, means, squares, count + 1, key), value

        self.step, self.ready = jax.jit(step), jax.block_until_ready
        self.gradients, self.batch = jax.jit(gradients), arrays(list(batch))

    def __call__(self):
        self.state, _ = self.ready(self.step(*self.state, *self.images))

    def results(self):
        return as_tensors(self.gradients(self.first, *self.batch))

    def trained(self):
        return have_moved(as_tensors(self.first), as_tensors(self.state[0]))


def adam(lr, params, gradients, means, squares, count, betas=(0.9, 0.999), eps=1e-8):
    """torch.optim.Adam's step number `count`: parameters, means and mean squares."""
    jnp = imported("jax").numpy
    means = [betas[0] * m + (1 - betas[0]) * g for m, g in zip(means, gradients, strict=True)]
    squares = [betas[1] * s + (1 - betas[1]) * g * g for s, g in zip(squares, gradients, strict=True)]
    first, second = (1 - beta**count for beta in betas)
    moved = [p - lr / first * m / (jnp.sqrt(s / second) + eps) for p, m, s in zip(params, means, squares, strict=True)]
    return moved, means, squares


def sinusoids(tasks):
    def draw(key):
        jnp, random = imported("jax").numpy, imported("jax").random
        keys = random.split(key, 3)
        amplitude = random.uniform(keys[0], (tasks, 1, 1), minval=0.1, maxval=5.0)
        phase = random.uniform(keys[1], (tasks, 1, 1), maxval=math.pi)
        x = random.uniform(keys[2], (tasks, 2 * POINTS, 1), minval=-5.0, maxval=5.0)
        y = amplitude * jnp.sin(x - phase)
        return x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:]

    return draw


def glyphs(tasks):
    def draw(key, images):
        jax = imported("jax")
        jnp, keys = jax.numpy, jax.random.split(key)
        classes, examples = images.shape[:2]
        _, chosen = jax.lax.top_k(jax.random.uniform(keys[0], (tasks, classes)), WAYS)
        _, shown = jax.lax.top_k(jax.random.uniform(keys[1], (tasks, WAYS, examples)), SHOTS + QUERIES)
        x = images[chosen[..., None], shown].astype(jnp.float32) / 255  # [T, N, K + Q', ...]
        support_x, query_x = (z.reshape(tasks, -1, *images.shape[2:]) for z in (x[:, :, :SHOTS], x[:, :, SHOTS:]))
        support_y, query_y = (jnp.tile(jnp.repeat(jnp.arange(WAYS), n), (tasks, 1)) for n in (SHOTS, QUERIES))
        return support_x, support_y, query_x, query_y

    return draw
