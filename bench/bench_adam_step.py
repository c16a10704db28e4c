from bench_momentum_step import race_of_step

import fastmeta


def bench_adam_step(race):
    """Forward and backward of a step of Adam of a Conv4's parameters, each task's own."""
    race_of_step(race, "adam_step", 2, lambda p, g, m, v: fastmeta.adam_step(p, g, m, v, 0.1, step=3), eager)


def eager(params, grads, means, squares):
    m = [0.9 * m + 0.1 * g for m, g in zip(means, grads, strict=True)]
    v = [0.999 * v + 0.001 * g * g for v, g in zip(squares, grads, strict=True)]
    scaled = ((m / (1 - 0.9**3), (v / (1 - 0.999**3)).sqrt() + 1e-8) for m, v in zip(m, v, strict=True))
    return [p - 0.1 * (m / below) for p, (m, below) in zip(params, scaled, strict=True)], m, v
