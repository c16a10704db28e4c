"""`python -m attack`: runs cases for a while and reports; exits with 1 where something was found."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator

os.environ |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}

from .pool import Outcome, Pool

CAPS = (1, 2, 3, 5)
STATUSES = ("held", "refused", "finding")
LATE = (
    "torch._dynamo",
    "torch.utils.checkpoint",
    "torch.utils.flop_counter",
    "triton.runtime.interpreter",
    "PIL.Image",
)
Key = tuple[str, str]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m attack", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long; shrinking what was found comes on top")
    parser.add_argument("--cases", type=int, help="so many cases in place of a time")
    parser.add_argument("--seed", type=int, default=0, help="of the whole run: case i is SEED * 10^7 + i")
    parser.add_argument("--only", help="an op, a learner, 'labels', 'wrong' or 'files'")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--case", help="one token of an earlier report, or several, joined by commas")
    return parser.parse_args()


def tokens(given: argparse.Namespace) -> Iterator[str]:
    end = time.monotonic() + given.seconds
    for i in itertools.count() if given.cases is None else range(given.cases):
        if given.cases is None and time.monotonic() > end:
            return
        yield str(given.seed * 10**7 + i)


def key_of(outcome: Outcome) -> Key:
    return outcome["name"], outcome["kind"]


def shrunk(pool: Pool, history: list[str], outcome: Outcome) -> tuple[str, Outcome]:
    """The smallest case with the same failure, and what it says."""
    token, key = history[-1], key_of(outcome)
    best = pool.alone(token)
    if key_of(best) != key:  # only after others
        for count in (1, 3, 10, len(history)):
            joined = ",".join(history[-1 - count :])
            if key_of(pool.alone(joined)) == key:
                return joined, outcome
        return ",".join(history), outcome | {"detail": f"{outcome['detail']} (did not come again)"}
    for oddity in list(best["seen"]):
        shorter = pool.alone(f"{token}-{oddity}")
        if key_of(shorter) == key:
            token, best = f"{token}-{oddity}", shorter
    for cap in CAPS:
        smaller = pool.alone(f"{token}@{cap}")
        if key_of(smaller) == key:
            return f"{token}@{cap}", smaller
    return token, best


def report(found: dict[Key, tuple[list[str], Outcome]], counts: Counter[Key], pool: Pool) -> None:
    for key, (history, first) in sorted(found.items()):
        token, outcome = shrunk(pool, history, first)
        print(f"\n{key[0]} | {key[1]}\n  {counts[key]} case{'s' * (counts[key] > 1)}\n  {outcome['notes']}")
        print(f"  {outcome['detail'][:400]}\n  python -m attack --case {token}", flush=True)


def main() -> int:
    given = arguments()
    for module in LATE:  # loaded once, before the processes fork
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    pool = Pool(given.processes, given.only)
    if given.case:
        outcome = pool.alone(given.case)
        print("\n".join(f"{name}: {value}" for name, value in outcome.items()))
        return int(outcome["status"] == "finding")
    begin, table, counts = time.monotonic(), Counter(), Counter()
    found: dict[Key, tuple[list[str], Outcome]] = {}
    for history, outcome in pool.run(tokens(given)):
        if outcome["status"] == "skipped":
            continue
        table[outcome["name"], outcome["status"]] += 1
        if outcome["status"] == "finding":
            counts[key_of(outcome)] += 1
            found.setdefault(key_of(outcome), (history, outcome))
    print(f"{'':20}" + "".join(f"{status:>10}" for status in STATUSES))
    for name in sorted({name for name, _ in table}):
        print(f"{name:20}" + "".join(f"{table[name, status]:10}" for status in STATUSES))
    print(
        f"{sum(table.values())} cases in {time.monotonic() - begin:.0f} s, {len(found)} kinds of findings", flush=True
    )
    report(found, counts, pool)
    pool.close()
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
