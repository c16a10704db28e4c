"""Meta-training on R GPUs, simulated: each rank computes the meta-gradient of its tasks, all ranks sum their gradients, all step.

Tasks are independent: what a rank computes depends on how many it has, and nothing but the gradients crosses the network.
Gradients go in buckets, as DistributedDataParallel sends them. The last `overlap` of a rank's computation makes them one after
the other; the inner-loop learners have 0: the chain of Hessian-vector products gives no gradient before its end. A bucket
starts once all ranks have it and the one before it is through. Ranks differ: a rank's computation in a meta-iteration takes
its usual time by a factor drawn from `spread`.
"""

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from measure import network

BUCKETS = (2**20, 25 * 2**20)  # bytes of DDP's first bucket and of the others
READY, SENT = range(2)


class Workload(NamedTuple):
    parameters: int  # whose gradients are summed; learned rates are among them
    compute: Callable[[int], float]  # s of a meta-iteration, by its tasks
    overlap: float = 0.0

    @property
    def size(self):
        """Bytes of the gradients."""
        return 4 * self.parameters


def linear(fixed, per_task):
    return lambda tasks: fixed + tasks * per_task


def buckets(size):
    """Bytes of each, in the order in which they are sent."""
    first, others = BUCKETS
    sizes = [min(size, first)]
    rest = size - sizes[0]
    return sizes + [min(others, rest - sent) for sent in range(0, rest, others)]


def meta_iteration(computes, sizes, overlap, transfer):
    """Seconds until the last bucket is summed. computes: seconds of each rank; sizes: bytes of each bucket; transfer(bytes):
    seconds of an all-reduce."""
    makes = [
        1 - overlap * (1 - (i + 1) / len(sizes)) for i in range(len(sizes))
    ]  # where in a computation a bucket is full
    events = [(seconds * part, READY, i) for seconds in computes for i, part in enumerate(makes)]
    heapq.heapify(events)
    arrived, waiting, busy = Counter(), deque(), False
    while events:
        now, kind, bucket = heapq.heappop(events)
        if kind == SENT:
            busy = False
        else:
            arrived[bucket] += 1
            if arrived[bucket] == len(computes):
                waiting.append(bucket)
        if waiting and not busy:
            busy = True
            bucket = waiting.popleft()
            heapq.heappush(events, (now + transfer(sizes[bucket]), SENT, bucket))
    return now


def simulate(workload, tasks, ranks, spread=(1.0,), iterations=20, net=network.DGX_H100):
    """Mean seconds of a meta-iteration of `tasks` tasks in all; the ranks differ by at most one task."""
    draws = random.Random(ranks)
    shares = [tasks // ranks + (rank < tasks % ranks) for rank in range(ranks)]
    usual = [workload.compute(share) if share else 0.0 for share in shares]
    sizes = buckets(workload.size)
    iterations = iterations if len(spread) > 1 else 1  # which would be the same again

    def one():
        computes = [seconds * draws.choice(spread) for seconds in usual]
        return meta_iteration(computes, sizes, workload.overlap, lambda size: network.all_reduce(size, ranks, net))

    return math.fsum(one() for _ in range(iterations)) / iterations


def expected_maximum(values, ranks):
    """The mean of the greatest of `ranks` draws from `values`: what stragglers cost where nothing overlaps."""
    n = len(values)
    return math.fsum(x * ((i / n) ** ranks - ((i - 1) / n) ** ranks) for i, x in enumerate(sorted(values), 1))


def weak(workload, tasks_of_rank, ranks, spread=(1.0,)):
    """Efficiency: the tasks per second and rank of R ranks, over those of one rank; the tasks of a rank are fixed."""
    alone = simulate(workload, tasks_of_rank, 1, spread)
    return alone / simulate(workload, tasks_of_rank * ranks, ranks, spread)


def strong(workload, tasks, ranks, spread=(1.0,)):
    """Efficiency: the same, where the tasks of all ranks together are fixed."""
    alone = simulate(workload, tasks, 1, spread)
    return alone / (ranks * simulate(workload, tasks, ranks, spread))
