"""What our kernels for a GPU move and compute, call by call, for model.py.

mlp ops. Products of one task, n examples, layers [in, out], first the one of the inputs: `layers` = sum 2 n in out flops,
`inner` = layers - first.
    forward layers; step (forward, backward, gradients) 2 layers + inner;
    Hessian-vector product (all that with tangents) 3 layers + 5 inner, Gauss-Newton 3 layers + 2 inner;
    gradients of rates `layers`, of the query's inputs `first`, of the support's 2 first.
A network of L layers has 3 L + 2 phases a step and 3 L + 3 a Hessian-vector product. Tasks whose arrays do not fit on the chip go
layer by layer: the bytes of a product of all tasks are its two factors and its result, once; a pass has a launch for each layer,
two with tangents, one for the loss and one for the gradients of all parameters.
"""

import itertools
import math

from gpu.model import Launch, Tasks
from measure.flops import products

# Of the distance ops: T tasks, Q queries, N prototypes (or supports), D features, all float32.


def distances(T, Q, N, D, gradients=True, kept=False, outputs=0, tf32=False):
    """Up to 32 columns by differences, 4 flops a pair and feature and in backward as many again, for queries and for columns;
    more by products, anew for each 64 (TF32: 128) features of a gradient. `kept`: those by differences are, from forward;
    `outputs`: numbers a query in the result, else a loss. What programs of a launch count by is zeroed before, a launch of its own."""
    few, inputs, numbers = N <= 32 or D < 16, 4 * T * (Q + N) * D, T * Q * N
    kept = kept and few
    pair = 4 * D if few else 2 * D
    of_rows, tensor_cores = 4 * T * Q * (outputs + 2), tf32 and not few
    launches = 1 if outputs else 2
    forward = Launch("forward", inputs + of_rows + 4 * numbers * kept, numbers * pair, launches, tensor_cores)
    if not gradients:
        return [forward]
    times = 1 if few else math.ceil(D / (128 if tf32 else 64))
    again = 0 if kept else pair * times
    backward = 2 * inputs + of_rows + 4 * numbers * kept
    return [forward, Launch("backward", backward, 2 * numbers * (pair + again), 2, tensor_cores)]


def prototypes(T, S, N, D):
    rows, means = 4 * T * S * D, 4 * T * N * D
    return [
        Launch("forward", rows + means + 8 * T * S, 2 * T * N * S * D),
        Launch("backward", rows + means + 8 * T * S),
    ]


def sgd_step(tasks, shared, rates):
    """Of `shared` numbers that all tasks start from, with `rates` rates."""
    each = 4 * tasks * shared
    forward = Launch("forward", 2 * each + 4 * (shared + rates), 2 * tasks * shared)
    return [forward, Launch("backward", 3 * each + 4 * (shared + 2 * rates), 6 * tasks * shared)]


def task_conv2d(T, n, C, E, pixels, kernel, second=False):
    """n images [C, pixels] to [E, pixels], kernel x kernel; all gradients. Programs own 64 x 64 numbers, or 16 or 32 where there are
    fewer; those of the weight gradient share the pixels until there are 512, and torch adds their parts. `second`: the
    gradients of a square's gradients; about what torch launches for the square."""
    weights = C * kernel**2
    x, y, w = (4 * T * numbers for numbers in (n * C * pixels, n * E * pixels, E * weights))
    product = 2 * T * n * pixels * E * weights
    programs = T * math.ceil(E / 64) * math.ceil(weights / 64)
    parts = max(min(math.ceil(n * pixels / 128), 512 // programs), 1)
    forward = Launch("forward", x + y + w, product)
    data = [Launch("weights transposed", 2 * w), Launch("data gradient", x + y + w, product)]
    weight = [Launch("weight gradient", x + y + parts * w, product)]
    weight += [Launch("sum of its parts", (parts + 1) * w)] if parts > 1 else []
    first = [forward, *data, *weight, Launch("bias gradient", y)]
    if not second:
        return first
    of_square = [Launch("the square and its sum", 3 * y, count=2), Launch("2 y dy and its gradients", 9 * y, count=6)]
    again = [forward, forward, Launch("their sum", 3 * y), *data, *weight]
    sums = Launch("sums of gradients", 3 * (x + w), count=2)
    return [*first, *of_square, *again, *data, *weight, Launch("bias gradient", y), sums]


def mean(T):
    """torch's, of a number a task, and its gradient."""
    return [Launch("mean", 4 * T), Launch("its gradient", 4 * T)]


# Of the mlp ops: widths of the layers, T tasks of n examples (S support, Q query); P numbers a task are parameters, shared by
# the tasks unless said otherwise. A kernel makes `passes`, (way, examples, times) with way as in `_pass`.


def mlp_forward(widths, T, n):
    """Both ways, with the gradients of the parameters."""
    P, x = parameters(widths), n * (widths[0] + widths[-1])
    forward = _kernel("forward", widths, T, [("forward", n, 1)], x, P)
    return [forward, _kernel("backward", widths, T, [("gradients", n, 1)], x + P, P), _over_tasks(widths, T)]


def mlp_loss(widths, T, n):
    return [*mlp_grad(widths, T, n), _over_tasks(widths, T)]


def mlp_grad(widths, T, n):
    P = parameters(widths)
    return [_kernel("loss and gradients", widths, T, [("gradients", n, 1)], n * (widths[0] + widths[-1]) + P + 1, P)]


def mlp_hvp(widths, T, n, way="hvp", own=True):
    """`own`: each task has parameters of its own."""
    P = parameters(widths)
    numbers = n * (widths[0] + widths[-1]) + (2 + own) * P
    return [_kernel("product", widths, T, [(way, n, 1)], numbers, 0 if own else P)]


def mlp_meta_loss(widths, T, S, Q, steps, rates=0, inputs=False):
    """`rates`: those that are learned, else one is a number; `inputs`: they ask for gradients too."""
    P, x = parameters(widths), (S + Q) * ((1 + inputs) * widths[0] + widths[-1])
    passes = [("gradients", S, steps), ("gradients", Q, 1), ("hvp", S, steps), ("direction", S, steps)]
    passes += [("rates", S, steps)] if rates else []
    passes += [("inputs", Q, 1), ("inputs of a step", S, steps)] if inputs else []
    kernel = _kernel("meta-gradient", widths, T, passes, x + P + rates + 1, P + rates, kept=steps)
    return [kernel, *_of_number(rates, 1), _over_tasks(widths, T, rates), *mean(T)]


def mlp_adapt(widths, T, S, Q, steps, rates=0, inputs=False):
    """With mlp_loss of the query."""
    P, x, of_query = parameters(widths), S * (widths[0] + widths[-1]), Q * ((1 + inputs) * widths[0] + widths[-1])
    chain = [
        ("hvp", S, steps),
        ("direction", S, steps),
        *([("rates", S, steps)] if rates else []),
        *([("inputs of a step", S, steps)] if inputs else []),
    ]
    query = [("gradients", Q, 1), *([("inputs", Q, 1)] if inputs else [])]
    return [
        _kernel("steps", widths, T, [("gradients", S, steps)], x + (steps + 1) * P, P + rates),
        _kernel("query", widths, T, query, of_query + 2 * P + 1),
        _kernel("chain", widths, T, chain, x + S * widths[0] * inputs + (steps + 2) * P + rates, rates),
        *_of_number(rates, 2), _over_tasks(widths, T, summed=False), _over_tasks(widths, T, rates), *mean(T),
    ]  # fmt: skip


def parameters(widths):
    return sum((i + 1) * o for i, o in itertools.pairwise(widths))


def _kernel(name, widths, T, passes, each, shared=0, kept=0):
    """`each`, `shared`: numbers from and to HBM of each task, and of all; `kept`: copies of the parameters on the chip."""
    L, P, most = len(widths) - 1, parameters(widths), max(n for _, n, _ in passes)
    found = [(times, *_pass(way, widths, n)) for way, n, times in passes]
    flops, phases, products_made, launches = (sum(of[0] * of[i] for of in found) for i in (1, 2, 3, 4))
    ways = {way for way, _, _ in passes}
    arrays = 1 + 2 * bool(ways - {"forward"}) + 2 * bool(ways & {"hvp", "ggn"})
    largest = max(*(most * w for w in widths), *(i * o for i, o in itertools.pairwise(widths)))
    working_set = 4 * (most * (sum(widths[1:]) * arrays + widths[0]) + P * (1 + 2 * bool(ways & {"hvp", "ggn"}) + kept))
    moved = 4 * (T * each + shared)
    block = Launch(name, moved, T * flops, tasks=T, phases=2 + phases, resident=2 if largest > 1024 else 4)
    operands = 4 * T * sum(most * i + i * o + most * o for i, o in itertools.pairwise(widths)) / L  # of one product
    layered = Launch(f"{name}, by layers", moved + products_made * operands, T * flops, launches)
    return Tasks(block, working_set, layered)


def _pass(way, widths, n):
    """One pass of one task: flops, phases; over all tasks: products, those of tangents counted twice, and launches by layers."""
    L, (layers, inner) = len(widths) - 1, products(widths, n)
    return {
        "forward": (layers, 2 * L - 1, L, L),
        "gradients": (2 * layers + inner, 3 * L + 2, 3 * L, 2 * L + 1),
        "hvp": (3 * layers + 5 * inner, 3 * L + 3, 6 * L, 4 * L),
        "ggn": (3 * layers + 2 * inner, 3 * L + 3, 4 * L, 3 * L + 1),
        "rates": (layers, 0, L, 1),
        "inputs": (layers - inner, 0, 1, 1),
        "inputs of a step": (2 * (layers - inner), 0, 2, 1),
        "direction": (0, 0, 0, 1),  # the rates times v
    }[way]


def _of_number(rates, count):
    """A rate that is a number becomes a tensor, by torch."""
    return [] if rates else [Launch("a rate to a tensor", 4 * count, count=count)]


def _over_tasks(widths, T, rates=0, summed=True):
    """The gradients of each task times its cotangent, and their sums."""
    numbers = parameters(widths) + rates
    return Launch("gradients over the tasks", 4 * numbers * (T + (1 if summed else T)))
