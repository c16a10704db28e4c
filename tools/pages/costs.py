"""What the launches of an op move and compute on a GPU, for its page.

Bytes are those from and to the card's memory, each array once. Flops count 2 for an instruction, whether it multiplies and adds or
only subtracts. Products of one task, n examples, layers [in, out], first the one of the inputs: `layers` = sum 2 n in out flops,
`inner` = layers - first (measure/flops.py).
    forward layers; step (forward, backward, gradients) 2 layers + inner; Hessian-vector product, with tangents, 3 layers + 5 inner
"""

import itertools
import math
from typing import NamedTuple

from measure import flops


class Launch(NamedTuple):
    name: str
    bytes: float
    flops: float = 0


# Of the distance ops: T tasks, Q queries, N prototypes (or supports), D features, all float32.


def distances(T, Q, N, D, kept=False, outputs=0):
    """Up to 32 columns by differences, 4 flops a pair and feature and in backward as many again, for queries and for columns;
    more by products, anew for each 64 features of a gradient. `kept`: those by differences are, from forward; `outputs`: numbers a
    query in the result, else a loss."""
    few, inputs, numbers = N <= 32 or D < 16, 4 * T * (Q + N) * D, T * Q * N
    pair, saved = 4 * D if few else 2 * D, kept and few
    of_rows = 4 * T * Q * (outputs + 2) + 4 * numbers * saved
    again = 0 if saved else pair * (1 if few else math.ceil(D / 64))
    return [
        Launch("forward", inputs + of_rows, numbers * pair),
        Launch("backward", 2 * inputs + of_rows, 2 * numbers * (pair + again)),
    ]


def prototypes(T, S, N, D):
    moved = 4 * T * S * D + 4 * T * N * D + 8 * T * S
    return [Launch("forward", moved, 2 * T * N * S * D), Launch("backward", moved)]


def sgd_step(tasks, shared, rates):
    """Of `shared` numbers that all tasks start from, with `rates` rates."""
    each = 4 * tasks * shared
    forward = Launch("forward", 2 * each + 4 * (shared + rates), 2 * tasks * shared)
    return [forward, Launch("backward", 3 * each + 4 * (shared + 2 * rates), 6 * tasks * shared)]


def step_with_state(tasks, numbers, states, flops):
    """Of `numbers` of each task's own, with one rate and no weight decay; flops of one number, forward and backward. Backward does not
    read the parameters."""
    each = 4 * tasks * numbers
    forward = Launch("forward", (3 + 2 * states) * each, flops[0] * tasks * numbers)
    return [forward, Launch("backward", (4 + 3 * states) * each, flops[1] * tasks * numbers)]


def task_conv2d(T, n, C, E, pixels, kernel):
    """n images [C, pixels] to [E, pixels], kernel x kernel; all gradients. Programs own 64 x 64 numbers, or 16 or 32 where there are
    fewer; those of the weight gradient share the pixels until there are 512, and torch adds their parts."""
    weights = C * kernel**2
    x, y, w = (4 * T * numbers for numbers in (n * C * pixels, n * E * pixels, E * weights))
    product = 2 * T * n * pixels * E * weights
    programs = T * math.ceil(E / 64) * math.ceil(weights / 64)
    parts = max(min(math.ceil(n * pixels / 128), 512 // programs), 1)
    return [
        Launch("forward", x + y + w, product),
        Launch("weights transposed", 2 * w),
        Launch("data gradient", x + y + w, product),
        Launch("weight gradient", x + y + parts * w, product),
        *([Launch("sum of its parts", (parts + 1) * w)] if parts > 1 else []),
        Launch("bias gradient", y),
    ]


# Of the mlp ops: widths of the layers, T tasks of n examples (S support, Q query), parameters that the tasks share; a task is one
# block, which keeps all that is not a result.


def mlp_forward(widths, T, n):
    P, x, layers = parameters(widths), n * (widths[0] + widths[-1]), flops.products(widths, n)[0]
    backward = Launch("backward", 4 * (T * (x + P) + P), T * flops.gradients(*flops.products(widths, n)))
    return [Launch("forward", 4 * (T * x + P), T * layers), backward, over_tasks(widths, T)]


def mlp_grad(widths, T, n):
    P, x = parameters(widths), n * (widths[0] + widths[-1])
    return [Launch("loss and gradients", 4 * (T * (x + P + 1) + P), T * flops.gradients(*flops.products(widths, n)))]


def mlp_loss(widths, T, n):
    return [*mlp_grad(widths, T, n), over_tasks(widths, T)]


def mlp_hvp(widths, T, n):
    """At parameters of each task's own."""
    return [
        Launch("product", 4 * T * (n * (widths[0] + widths[-1]) + 3 * parameters(widths)), T * flops.hvp(widths, n))
    ]


def mlp_meta_loss(widths, T, S, Q, steps):
    P, x = parameters(widths), (S + Q) * (widths[0] + widths[-1])
    of_steps = steps * (_step(widths, S) + flops.hvp(widths, S))
    kernel = Launch("meta-gradient", 4 * (T * (x + P + 1) + P), T * (of_steps + _step(widths, Q)))
    return [kernel, Launch("a rate to a tensor", 4), over_tasks(widths, T), *mean(T)]


def mlp_adapt(widths, T, S, Q, steps):
    """With mlp_loss of the query."""
    P, x, of_query = parameters(widths), S * (widths[0] + widths[-1]), Q * (widths[0] + widths[-1])
    return [
        Launch("steps", 4 * (T * (x + (steps + 1) * P) + P), T * steps * _step(widths, S)),
        Launch("query", 4 * T * (of_query + 2 * P + 1), T * _step(widths, Q)),
        Launch("chain", 4 * T * (x + (steps + 2) * P), T * steps * flops.hvp(widths, S)),
        Launch("a rate to a tensor", 8),
        Launch("gradients over the tasks", 8 * P * T),
        over_tasks(widths, T),
        *mean(T),
    ]


def _step(widths, n):
    return flops.gradients(*flops.products(widths, n))


def parameters(widths):
    return sum((i + 1) * o for i, o in itertools.pairwise(widths))


def over_tasks(widths, T):
    """The gradients of each task times its cotangent, and their sums."""
    return Launch("gradients over the tasks", 4 * parameters(widths) * (T + 1))


def mean(T):
    """torch's, of a number a task, and its gradient."""
    return [Launch("mean", 4 * T), Launch("its gradient", 4 * T)]


EPISODES = "32 tasks, 25 supports, 75 queries, 5 ways, 64 features"
IMAGES = "32 tasks, 25 images 14 x 14, 32 to 32 channels, 3 x 3"
HEAD = "32 tasks, a linear classifier of 64 features and 5 ways, 25 examples"
META = HEAD + " and 75 queries, 5 steps"
OWN = "32 tasks, 1e5 parameters of each task's own, one rate"
OF_OPS = {  # the sizes in words, and the launches at these sizes
    "prototypes": (EPISODES, prototypes(32, 25, 5, 64)),
    "proto_log_softmax": (EPISODES, distances(32, 75, 5, 64, outputs=5)),
    "proto_loss": (EPISODES, distances(32, 75, 5, 64, kept=True)),
    "matching_log_probs": (EPISODES, distances(32, 75, 25, 64, outputs=5)),
    "sgd_step": ("32 tasks, 1e5 parameters, one rate", sgd_step(32, 100_000, 1)),
    "momentum_step": (OWN, step_with_state(32, 100_000, 1, (4, 10))),
    "adam_step": (OWN, step_with_state(32, 100_000, 2, (22, 48))),
    "task_conv2d": (IMAGES, task_conv2d(32, 25, 32, 32, 14 * 14, 3)),
    "mlp_forward": (HEAD, mlp_forward((64, 5), 32, 25)),
    "mlp_loss": (HEAD, mlp_loss((64, 5), 32, 25)),
    "mlp_grad": (HEAD, mlp_grad((64, 5), 32, 25)),
    "mlp_hvp": (HEAD, mlp_hvp((64, 5), 32, 25)),
    "mlp_adapt": (META, mlp_adapt((64, 5), 32, 25, 75, 5)),
    "mlp_meta_loss": (META, mlp_meta_loss((64, 5), 32, 25, 75, 5)),
}
