"""How long our kernels should take on a GPU, and beside them the best that torch and JAX can make of the same mathematics: a roofline, to
hold the first measurement against. Nothing of it is measured.

A launch takes LAUNCH + max(bytes / bandwidth of HBM, flops / peak of float32 without tensor cores); a flop is a product or a sum.

Ours by task (csrc/inner/cuda/mlp_launch.cuh): a block for a task. The multiprocessor with most, q = ceil(T / M) of T tasks, takes the
largest of q tasks' flops at its part of the peak, their operands from shared memory, a byte a flop at SHARED bytes a cycle, and of the
first layer, where the examples are left in device memory, half a byte a flop at L2 bytes a cycle; and PHASE cycles a barrier, those of
the blocks that it holds at a time side by side. By layer: each product of all tasks in tiles of TILE x TILE, its factors and result once
through HBM. By gram: a block for each slice of SLICE features and task, operands from L1 as from shared memory; the parts of the dots once
written and read, the examples read again.

Theirs: torch.compile in a CUDA graph, or jax.jit: two kernels a product, the product and one that all elementwise work around it is fused
into; each product's factors and result go through HBM once, the elementwise kernel reads and writes the result again. No product is
padded, none waits for the host. The products are those of reverse mode through the inner steps, without gradients to the examples.
"""

import itertools
import math
from typing import NamedTuple

LAUNCH = {"eager": 3e-6, "graph": 1.5e-6}  # s; of eager calls with the host's part
SHARED, L2 = 128, 64  # bytes a cycle of one multiprocessor
PHASE = 200  # cycles of a barrier with what comes before it: indices, a load, a store
TILE, SLICE = 64, 128
THREADS, MOST_THREADS = 512, 256  # of a multiprocessor, of a block
OWN = 1024 + 16  # bytes of static shared memory of a block


class Card(NamedTuple):
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes of HBM a second
    peak: float  # flop a second, float32 without tensor cores
    shared: int  # bytes of a block, at most
    all_shared: int  # of a multiprocessor


CARDS = {
    "A100": Card(108, 1.41e9, 2.04e12, 19.5e12, 163 * 1024, 164 * 1024),
    "H100": Card(132, 1.98e9, 3.35e12, 66.9e12, 227 * 1024, 228 * 1024),
    "H200": Card(132, 1.98e9, 4.8e12, 66.9e12, 227 * 1024, 228 * 1024),
    "B200": Card(148, 1.97e9, 8.0e12, 74.4e12, 227 * 1024, 228 * 1024),
}


class Mlp(NamedTuple):
    """mlp_meta_loss with its gradients of T tasks, ReLU, one rate that is a number; without `steps`: mlp_hvp of S examples."""

    widths: tuple[int, ...]
    T: int
    S: int
    Q: int = 0
    steps: int = 0

    @property
    def layers(self):
        return len(self.widths) - 1

    @property
    def params(self):
        return sum((i + 1) * o for i, o in itertools.pairwise(self.widths))


class Head(NamedTuple):
    """proto_loss with its gradients, at most 32 ways: T tasks of Q queries, N prototypes of D features."""

    T: int
    Q: int
    N: int
    D: int

    @property
    def inputs(self):
        return 4 * self.T * (self.Q + self.N) * self.D

    @property
    def pairs(self):
        return self.T * self.Q * self.N


class Plan(NamedTuple):
    way: str  # "by task", "by layer", "by gram"
    resident: int = 1  # blocks of a multiprocessor
    holds_inputs: bool = False  # in shared memory


def plan(card, p):
    """What make_plan of mlp_launch.cuh and gram_pays of mlp_gram.cu decide, for float32."""
    if _gram_pays(card, p):
        return Plan("by gram")
    n, M = max(p.S, p.Q), card.multiprocessors
    weights = [i * o for i, o in itertools.pairwise(p.widths)]
    if p.T * 4 <= M and n * (sum(weights) + sum(p.widths)) >= 1 << 20:
        return Plan("by layer")
    most = max(n * max(p.widths), *weights)
    resident = min(THREADS // (MOST_THREADS if most > 1024 else MOST_THREADS // 2), -(-p.T // M))
    for blocks in range(resident, 0, -1):
        room = min(card.shared - OWN, card.all_shared // blocks - 1024 - OWN)
        fits, holds = _laid_out(p, n, room)
        if fits:
            return Plan("by task", blocks, holds)
    return Plan("by layer")


def _laid_out(p, n, room):
    """Whether one task's arrays lie in so many bytes of shared memory, but for what is kept from step to step; whether its inputs do."""
    used, fits, adapts = 0, True, p.steps > 0
    arrays = []
    for layer, width in enumerate(p.widths[1:], 1):
        of_hidden = layer < p.layers
        arrays += [(n * width, True)] * (4 + of_hidden)  # a, d and their tangents; the slope
    arrays += [(p.params, adapts), (p.params, adapts), *[(p.params, True)] * adapts, (n * p.widths[0], False)]
    for count, must in arrays:
        held = used + -(-4 * count // 16) * 16 <= room
        used += -(-4 * count // 16) * 16 * held
        fits = fits and (held or not must)
    return fits, held


def _gram_pays(card, p):
    D, N, (T, S, Q, K) = p.widths[0], p.widths[-1], p[1:]
    if p.layers > 1 or not K or D < 1024 or S + Q + N > 2048:
        return False
    arrays = [(S + Q) * (S + N), (K + 1) * S * N, K * S * N, *[S * N] * 5, *[Q * N] * 2, *[N] * 3]
    if sum(-(-4 * count // 16) * 16 for count in arrays) > card.shared - 2048:
        return False
    direct, gram = N * (6 * K * S + 2 * Q), (S + Q) * (S + 2 * N)
    return 4 * gram < direct * min(card.multiprocessors // T, -(-D // SLICE))


def launches(card, p):
    """Of one call with its gradients, torch's mean and its gradient left out."""
    if isinstance(p, Head):
        return 4  # of them two zero counters
    over_tasks = p.steps > 0
    if plan(card, p).way != "by layer":
        return 1 + over_tasks + 2 * (plan(card, p).way == "by gram")
    L = p.layers
    return p.steps * (6 * L + 2) + 2 * L + 2 if p.steps else 4 * L


def seconds(card, p, way="graph"):
    """Of ours."""
    of_calls = launches(card, p) * LAUNCH[way]
    if isinstance(p, Head):  # 4 flops a pair and feature; backward finds distances anew, for queries and for prototypes
        forward = max(p.inputs / card.bandwidth, 4 * p.pairs * p.D / card.peak)
        return of_calls + forward + max(2 * p.inputs / card.bandwidth, 16 * p.pairs * p.D / card.peak)
    how = plan(card, p)
    moved = 4 * (p.T * (p.S + p.Q) * (p.widths[0] + p.widths[-1]) + (2 * p.T + 3) * p.params) / card.bandwidth
    passes = _passes(p)
    if how.way == "by gram":
        return of_calls + moved + _by_gram(card, p)
    if how.way == "by layer":
        tiled = (p.T * math.ceil(a / TILE) * math.ceil(b / TILE) * TILE**2 * 2 * c for a, b, c in passes)
        return of_calls + sum(
            max(f / card.peak, _bytes(p, x) / card.bandwidth) for f, x in zip(tiled, passes, strict=True)
        )
    flops = sum(2 * a * b * c for a, b, c in passes)
    first = 0 if how.holds_inputs else sum(2 * a * b * c for a, b, c in passes if p.widths[0] in (b, c))
    most = math.ceil(p.T / card.multiprocessors)
    busy = max(flops * card.multiprocessors / card.peak, flops / SHARED / card.clock, first / 2 / L2 / card.clock)
    barriers = (p.steps * (6 * p.layers + 5) + 3 * p.layers + 4) * PHASE / card.clock
    return of_calls + max(moved, most * busy + math.ceil(most / how.resident) * barriers)


def _by_gram(card, p):
    """Beside what crosses HBM anyway: dots, their parts, the steps, the weights."""
    D, N, (T, S, Q, K) = p.widths[0], p.widths[-1], p[1:]
    slices, part = -(-D // SLICE), (S + Q) * (S + N)
    waves = math.ceil(T * slices / card.multiprocessors)
    flops = 2 * SLICE * (part + N * (S + Q))
    products = waves * max(flops * card.multiprocessors / card.peak, flops / SHARED / card.clock)
    again = 4 * T * (2 * slices * part + (S + Q) * D + N * D) / card.bandwidth
    return products + again + (18 * K + 15) * PHASE / card.clock


def others(card, p, way="graph"):
    """(kernels, seconds) of the best of theirs."""
    if isinstance(
        p, Head
    ):  # squares; a product, its softmax and mean; their gradients, two products, what the squares add
        moved = 6 * p.inputs + 24 * p.pairs
        return 9, 9 * LAUNCH[way] + max(moved / card.bandwidth, 6 * p.pairs * p.D / card.peak)
    passes = _passes(p, theirs=True)
    each = (max(p.T * 2 * a * b * c / card.peak, _bytes(p, (a, b, c)) / card.bandwidth) for a, b, c in passes)
    elementwise = sum(8 * p.T * a * b for a, b, _ in passes) / card.bandwidth
    return 2 * len(passes), 2 * len(passes) * LAUNCH[way] + sum(each) + elementwise


def _bytes(p, product):
    a, b, c = product
    return 4 * p.T * (a * c + b * c + a * b)


def _passes(p, theirs=False):
    """The products (rows, columns, inner) of one task."""
    step, hvp = _of_step(p.widths, p.S), _of_hvp(p.widths, p.S)
    if not p.steps:
        return hvp
    if theirs:  # each product of a step again for either factor, but to the examples
        first = p.widths[0]
        hvp = [x for a, b, c in step for x in ((a, c, b), (c, b, a)) if not (p.S in x[:2] and first in x[:2])]
    return (step + hvp) * p.steps + _of_step(p.widths, p.Q)


def _of_step(widths, n):
    found = []
    for layer, (i, o) in enumerate(itertools.pairwise(widths)):
        found += [(n, o, i), (o, i, n), *([(n, i, o)] if layer else [])]
    return found


def _of_hvp(widths, n):
    """With the activations and their gradients anew; tangents of both factors, but of the examples."""
    found = []
    for layer, (i, o) in enumerate(itertools.pairwise(widths)):
        found += [(n, o, i), *[(n, o, i), (o, i, n)] * (2 if layer else 1), *([(n, i, o)] * 3 if layer else [])]
    return found
