"""Races every op and learner on one device, by the files of bench/: a JSON line for each group as soon as it is done.

    python -m gpu.race cuda [proto_loss ...] --seconds 60 [--first | --tf32 | --compile] [--small]

Every way is checked before it is timed; on a GPU each is captured into a CUDA graph too, which is checked like it. Names: of
benches, else all. --first: of each its first call alone. --tf32: with torch's switches for TF32 on, all results within TF32's tolerance.
--compile races what compiles first, and nothing else. A group begins only while there are seconds left, so that what came is whole.
"""

import argparse
import contextlib
import functools
import gc
import json
import math
import statistics
import sys
import time
from collections import defaultdict

import torch

from fastmeta import _dispatch, reference
from gpu.report import IN_GRAPH
from measure import machine
from measure.benches import calls, in_float64, label, modules
from measure.contenders import why_missing
from measure.inner_loops import INDUCTOR
from measure.timing import captured, disagreement, in_words, results_of, take_turns, turns_of

OURS = "fastmeta"
BUDGET, SMALL_BUDGET = 0.4, 0.02  # s for a group
MIN_ROUNDS = 5
TOLERANCE, TF32_TOLERANCE = 1e-3, 2e-2  # of a result's norm: TF32 keeps 10 bits, of which an inner loop loses some
PEERS = ("learn2learn", "higher", "torchopt", "easyfsl", "jax", "pykeops")


class Race:
    """The `race` of conftest.py on one device; what came of a group goes to `emit`. Medians, of contenders in turns."""

    def __init__(self, device, emit, *, end=math.inf, compiling=False, small=False, tf32=False):
        self.device, self.emit, self.end, self.compiling, self.small = device, emit, end, compiling, small
        self.tf32, self.tolerance = tf32, TF32_TOLERANCE if tf32 else TOLERANCE
        self.truth = None  # of the bench that is called next; the reference where there is none

    def __call__(self, group, contenders, also=None, compiled=None, truth=None, floor=None, **_):
        expected = (self.truth or contenders["reference"])()
        torch.set_default_device(None)  # a default device costs every call of torch, ours and the others'
        torch._dynamo.reset()
        ways = (compiled or {}) if self.compiling else {OURS: contenders["ext"], **contenders, **(also or {})}
        ways = {
            name: fn for name, fn in ways.items() if name != "ext" and not name.endswith(tuple(filter(None, INDUCTOR)))
        }
        if not ways:
            return
        runs, reasons = self.checked(ways, expected)
        group += ", TF32" * self.tf32
        found = {
            "group": group,
            "tolerance": self.tolerance,
            "ours": [OURS, *(also or {})],
            "not timed": reasons,
            "seconds": self.medians(runs),
        }
        if floor:
            found["floor"] = machine.floor(*floor, device=self.device)
        self.emit(found)

    def medians(self, runs):
        if not runs:
            return {}
        turns = turns_of(runs, SMALL_BUDGET if self.small else BUDGET, MIN_ROUNDS)
        times = defaultdict(list)
        for turn in range(turns.rounds):
            take_turns(runs, turns, turn, times)
        return {name: statistics.median(of_turns) for name, of_turns in times.items()}

    def checked(self, ways, expected):
        """The ways that give what is expected, eager and as CUDA graphs, and for the others what is wrong with them."""
        runs, reasons = {}, {}
        for name, fn in ways.items():
            if time.perf_counter() > self.end:
                reasons[name] = "there was no time left"
                continue
            self.check(name, lambda fn=fn: fn, expected, runs, reasons)
            if self.device == "cuda" and name in runs:
                self.check(name + IN_GRAPH, functools.partial(captured, fn), expected, runs, reasons)
        return runs, reasons

    def check(self, name, make, expected, runs, reasons):
        try:
            fn = make()
            wrong = disagreement(results_of(fn, fn()), expected, self.tolerance)
        except Exception as error:  # of whatever library
            wrong = in_words(error)
        if wrong is None:
            runs[name] = fn
        else:
            reasons[name] = wrong


def without_kernels(device):
    """Ops that would run on the reference, with each backend's reason."""
    of_device = torch.empty(0, device=device).device
    reasons, none_meant = {}, {*_dispatch.WITHOUT_KERNELS, *(["task_conv2d"] if device == "cpu" else [])}
    for op in sorted(set(reference.__all__) - none_meant):
        of_op = {
            name: _dispatch.unavailable(op, name, of_device) for name in _dispatch.ORDER[device] if name != "reference"
        }
        if all(of_op.values()):
            reasons[op] = of_op
    return reasons


def in_order(names, first=False):
    """Every module's first call, then, unless the first is enough, the others."""
    of_modules = [list(calls(name)) for name in names]
    rest = [] if first else [call for found in of_modules for call in found[1:]]
    return [found[0] for found in of_modules] + rest


def race_all(race, names, first):
    """Calls the benches until the time is over; the names of those left."""
    left = []
    for function, arguments in in_order(names, first):
        if time.perf_counter() > race.end:
            left.append(label(function, arguments))
            continue
        torch.manual_seed(0)
        torch.set_default_device(race.device)
        race.truth = functools.partial(in_float64, function, arguments)
        try:
            function(race, **arguments)
        except Exception as error:  # the truth itself
            race.emit({"group": label(function, arguments), "error": in_words(error)})
        torch.set_default_device(None)
        gc.collect()  # graphs and their memory
    return left


def emit(found):
    print(json.dumps(found), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("device")
    parser.add_argument("names", nargs="*", default=modules())
    parser.add_argument("--seconds", type=float, required=True)
    for flag in ("--first", "--tf32", "--compile", "--small"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    device = options.device
    missing = without_kernels(device)
    if missing:
        sys.exit(f"ops without a kernel on {device}: {missing}")
    end = time.perf_counter() + options.seconds
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    race = Race(device, emit, end=end, compiling=options.compile, small=options.small, tf32=options.tf32)
    emit({"missing": {name: reason for name in PEERS if (reason := why_missing(name))}})
    with on_a_stream(device):
        if not options.small:
            bandwidth, rate = machine.ceilings(None, device)
            emit({"bytes per second": bandwidth, "flop per second": rate})
        emit({"left": race_all(race, options.names, options.first or options.small)})


def on_a_stream(device):
    """On a GPU everything runs on one stream other than the default: see timing.captured."""
    return torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else contextlib.nullcontext()


if __name__ == "__main__":
    main()
