"""Runs cases in processes that may crash, or never end; shrinks what they find to the smallest case, and reports it."""

import argparse
import faulthandler
import itertools
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import wait

import torch

from . import tokens

LIMIT = 90  # seconds for a case
MEMORY = 24 << 30  # of address space
CAPS = (1, 2, 3, 5)
STATUSES = ("held", "refused", "finding")


def _serve(pipe, log):
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    faulthandler.enable(2)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty is filled with NaN
    while True:
        pipe.send(tokens.run(pipe.recv()))


class Worker:
    """A process that answers tokens."""

    def __init__(self):
        context = multiprocessing.get_context("fork")
        self.log, (self.pipe, theirs) = tempfile.TemporaryFile(), context.Pipe()  # noqa: SIM115 (as long as the worker lives)
        self.process = context.Process(target=_serve, args=(theirs, self.log.fileno()), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, token):
        self.token, self.since = token, time.monotonic()
        self.pipe.send(token)

    def answer(self):
        """None where there is none yet."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            self.log.seek(0)
            lines = [line.strip() for line in self.log.read().decode(errors="replace").splitlines()]
            places = [line for line in lines if line.startswith("File")][:4] or lines[-3:]
            return self._finding(
                f"crash: {signal.Signals(-code).name if code < 0 else f'exit {code}'}", " < ".join(places)
            )
        return self._finding(f"no answer in {LIMIT} s", "") if time.monotonic() - self.since > LIMIT else None

    def _finding(self, kind, detail):
        self.stop()
        found = {"name": tokens.name_of(self.token), "status": "finding", "kind": kind, "detail": detail}
        return found | {"notes": "", "seen": []}

    def stop(self):
        self.process.kill()
        self.process.join()


def outcomes(of, processes=1):
    """(token, outcome) of each token, as they come."""
    idle, busy, remaining = [], {}, iter(of)
    while True:
        while len(busy) < processes and (token := next(remaining, None)):
            worker = idle.pop() if idle else Worker()
            worker.ask(token)
            busy[worker.pipe] = worker
        if not busy:
            break
        wait(list(busy), timeout=1)
        for pipe, worker in list(busy.items()):
            if (outcome := worker.answer()) is not None:
                del busy[pipe]
                if worker.process.is_alive():
                    idle.append(worker)
                yield worker.token, outcome
    for worker in idle:
        worker.stop()


def alone(token):
    return next(outcomes([token]))[1]


def key_of(outcome):
    return outcome["name"], outcome["kind"]


def shrunk(token, outcome):
    """The smallest case with the same failure, and what it says; alone, since a case may fail only after others."""
    key, best = key_of(outcome), alone(token)
    if key_of(best) != key:
        return token, outcome | {"detail": f"{outcome['detail']} (not alone)"}
    for oddity in list(best["seen"]):
        shorter = alone(f"{token}-{oddity}")
        if key_of(shorter) == key:
            token, best = f"{token}-{oddity}", shorter
    for cap in CAPS:
        smaller = alone(f"{token}@{cap}")
        if key_of(smaller) == key:
            return f"{token}@{cap}", smaller
    return token, best


def report(found, counts):
    for key, first in sorted(found.items()):
        token, outcome = shrunk(*first)
        print(f"\n{key[0]} | {key[1]}\n  {counts[key]} case{'s' * (counts[key] > 1)}\n  {outcome['notes']}")
        print(f"  {outcome['detail'][:400]}\n  python -m attack --case {token}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(prog="python -m attack")
    parser.add_argument("--seconds", type=float, default=60, help="how long; shrinking what was found comes on top")
    parser.add_argument("--cases", type=int, help="so many cases in place of a time")
    parser.add_argument("--seed", type=int, default=0, help="of the whole run: case i is SEED * 10^7 + i")
    parser.add_argument("--only", help="an op, a learner, 'labels', 'wrong' or 'files'")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--case", help="one token of an earlier report")
    return parser.parse_args()


def numbered(given):
    end = time.monotonic() + given.seconds
    for i in itertools.count() if given.cases is None else range(given.cases):
        if given.cases is None and time.monotonic() > end:
            return
        token = str(given.seed * 10**7 + i)
        if given.only in (None, tokens.name_of(token)):
            yield token


def main():
    given = arguments()
    if given.case:
        outcome = alone(given.case)
        print("\n".join(f"{name}: {value}" for name, value in outcome.items()))
        return int(outcome["status"] == "finding")
    begin, table, counts, found = time.monotonic(), Counter(), Counter(), {}
    for token, outcome in outcomes(numbered(given), given.processes):
        table[outcome["name"], outcome["status"]] += 1
        if outcome["status"] == "finding":
            counts[key_of(outcome)] += 1
            found.setdefault(key_of(outcome), (token, outcome))
    print(f"{'':20}" + "".join(f"{status:>10}" for status in STATUSES))
    for name in sorted({name for name, _ in table}):
        print(f"{name:20}" + "".join(f"{table[name, status]:10}" for status in STATUSES))
    seconds = time.monotonic() - begin
    print(f"{sum(table.values())} cases in {seconds:.0f} s, {len(found)} kinds of findings", flush=True)
    report(found, counts)
    return int(bool(found))
