"""Peak memory and time of the programs of fastmeta.unroll against their inner steps, by each way: `make inner-loops`.

A loss and its gradients on one thread, each in a process of its own, into examples/results/inner_loops.json. `python -m
measure.against_steps memory` takes the memory alone, which does not depend on what else the machine does.
"""

import argparse
import ctypes
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from plain import WAYS

from harness.places import ROOT
from harness.unrolled_programs import PROGRAMS
from measure.machine import processor
from measure.usage import peak

RESULTS = ROOT / "examples/results/inner_loops.json"
STEPS = (1, 5, 20, 50)
MOST = 1000  # MiB: a way that took more is left out at more steps
SECONDS, CALLS = 2.0, 3  # of a time, at least


def prepared(program: str, way: str, steps: int) -> Callable[[], list[torch.Tensor]]:
    """The call, after small ones: what torch loads and keeps then does not count."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for other in WAYS:
        PROGRAMS[program](2, False).differentiated(other)
    problem = PROGRAMS[program](steps, True)
    return lambda: problem.differentiated(way)


def mebibytes(program: str, way: str, steps: int) -> float:
    call = prepared(program, way, steps)
    return round(peak(lambda: ctypes.CDLL(None).malloc_trim(0), call) / 1024, 1)  # what is free goes back first


def seconds(program: str, way: str, steps: int) -> float:
    call, times = prepared(program, way, steps), []
    call()
    while sum(times) < SECONDS or len(times) < CALLS:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times), 5)


MEASURES = {"memory": ("MiB", mebibytes), "time": ("seconds", seconds)}


def in_new_process(function: Callable[..., float], *arguments: Any) -> float:
    """A fork of this one, in which nothing has been computed yet."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def measured(quantity: str, programs: list[str], steps: list[int]) -> list[dict[str, Any]]:
    unit, function = MEASURES[quantity]
    rows, large = [], set()
    here = {"machine": processor(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    for program in programs:
        for k in sorted(steps):
            for way in WAYS:
                if (program, way) in large:
                    continue
                found = in_new_process(function, program, way, k)
                print(f"{program} {way} K = {k}: {found} {unit}", flush=True)
                rows.append({"program": program, "way": way, "steps": k, unit: found} | here)
                if unit == "MiB" and found > MOST:
                    large.add((program, way))
    return rows


def merged(path: Path, rows: list[dict[str, Any]]) -> None:
    """Each row into the one of the same program, way and steps."""
    known = json.loads(path.read_text()) if path.exists() else []
    table = {(row["program"], row["way"], row["steps"]): row for row in known}
    for row in rows:
        table.setdefault((row["program"], row["way"], row["steps"]), {}).update(row)
    lines = ",\n".join(json.dumps(row) for _, row in sorted(table.items()))
    path.write_text(f"[\n{lines}\n]\n")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("quantities", nargs="*", default=[*MEASURES], metavar="memory|time")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=[*PROGRAMS])
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    for quantity in args.quantities:
        merged(args.results, measured(quantity, args.programs, args.steps))


if __name__ == "__main__":
    main()
