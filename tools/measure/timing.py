"""How the benches time, on any device: contenders that are right, in turns, so that what else the machine does meets all alike."""

import math
import re
import time
from typing import NamedTuple

import torch

from fastmeta._dispatch import tensors_of

TURN = 3e-3  # s, at least: a contender calls as often as that takes
BUDGET = 1.5  # s for a group
MIN_ROUNDS, MAX_ROUNDS = 15, 500
SLOW, SLOWER = 0.01, 0.2  # s: from here on a contender runs in every third round, in every seventh


class Turns(NamedTuple):
    calls: dict  # of each contender in one turn
    every: dict  # how many rounds from one turn of a contender to its next
    rounds: int


def synchronised() -> float:
    """The time, once a GPU has done all that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def per_call(fn, calls):
    """Seconds, the caller's and the device's whichever end later; the caches are warm."""
    start = synchronised()
    for _ in range(calls):
        fn()
    return (synchronised() - start) / calls


def turns_of(contenders, budget=BUDGET, min_rounds=MIN_ROUNDS):
    """For contenders that have been called before."""
    seconds = {name: _roughly(fn) for name, fn in contenders.items()}
    calls = {name: _whole(TURN / s, contenders[name]) for name, s in seconds.items()}
    every = {name: 7 if s > SLOWER else 3 if s > SLOW else 1 for name, s in seconds.items()}
    cost = sum(s * calls[name] / every[name] for name, s in seconds.items())
    return Turns(calls, every, min(max(min_rounds, int(budget / cost)), MAX_ROUNDS))


def _whole(calls, fn):
    """So many calls, or the next multiple of `fn.period`, where every so many calls of a contender one takes longer."""
    period = getattr(fn, "period", 1)
    return period * math.ceil(calls / period)


def take_turns(runs, turns, turn, times):
    """Adds to `times` the seconds of a call of each contender that has its turn."""
    for name, fn in runs.items():
        if turn % turns.every[name] == 0:
            if not times[name] or times[name][-1] < SLOW:
                fn()  # brings its own memory back into cache
            times[name].append(per_call(fn, turns.calls[name]))


def _roughly(fn):
    first = per_call(fn, 1)
    return first if first > SLOW else min(per_call(fn, 1) for _ in range(3))


def results_of(fn, found):
    """Of a contender: what a call of it gave, or `fn.results()` where it has that, since a call gives no tensors, or others each time."""
    return fn.results() if hasattr(fn, "results") else found


def first_call(fn, expected):
    """What is wrong with the results of fn, in words or None, and the seconds that it took to get them."""
    start = synchronised()
    try:
        found = fn()
        took = synchronised() - start
        return disagreement(results_of(fn, found), expected), took
    except Exception as error:  # of whatever library
        return in_words(error), synchronised() - start


def in_words(error):
    """The error's first line, without the folders of this machine: results are published."""
    lines = str(error).strip().splitlines()
    return re.sub(r"(?<!\S)/(?:[^\s/]+/)+", "", f"{type(error).__name__}: {lines[0] if lines else ''}")


def disagreement(found, expected, tolerance=1e-3):
    """Where results differ from what is true by more than the tolerance of its norm, in words; None where they agree. What is only rounding
    beside the other results, such as the gradient of a bias before a batch norm, is taken as zero."""
    found, expected = tensors_of(found), tensors_of(expected)
    if len(found) != len(expected):
        return f"{len(found)} results for {len(expected)}"
    zero = 1e-5 * max((float(right.norm()) for right in expected), default=0.0)  # a hundred roundings of float32
    for ours, right in zip(found, expected, strict=True):
        if ours.shape != right.shape:
            return f"shape {list(ours.shape)} for {list(right.shape)}"
        error, size = (ours - right).norm(), right.norm()
        if not error <= max(tolerance * size, zero):
            return f"error {error}, norm {size}"
    return None


def captured(fn):
    """A function that replays fn() as a CUDA graph and returns the results of fn, each replay in the same memory.

    The current stream must not be the default one, and autograd's leaves must not have been used on another: a backward pass
    waits for the streams of its leaves, and to wait for one that does not take part ends a capture.
    """
    for _ in range(3):  # what is compiled, loaded or allocated at first
        fn()
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[torch.cuda.current_device()]
    state = generator.clone_state()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            results = fn()
    except Exception as error:
        generator.graphsafe_set_state(state)  # the other one still thinks itself captured, and would refuse to draw
        raise (error.__context__ or error) from None  # what happened in fn, before the capture could not be ended

    def replay():
        graph.replay()
        return results

    return replay
