"""One run of the benches: what is raced and what is left out, the truths, and the rows that came of it."""

import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch

import fastmeta
from measure import jax_ways
from measure.benches import in_float64, label
from measure.machine import ceilings, first_line, machine, processor

# What compiles first, the counts and the memory come with the first of them: torch.compile makes code anew for each.
THREADS = (2, 1)
# Seconds for all races, for compiling, for a row; rounds of a row.
QUICK = SimpleNamespace(limit=100, compiling=0, budget=0.3, rounds=5)
FULL = SimpleNamespace(limit=1200, compiling=480, budget=1.2, rounds=15)
ROW_COMPILING = 4  # s: a row compiles no further way after as many; of those that take longer the best one races alone
SLOW_ROW = 8  # s on THREADS[0], from where on the row runs on no other number of threads
LIKE_PROTO_LOSS = ("sqeuclidean", "proto_log_softmax")  # on which what compiles does as on euclidean proto_loss


class Session:
    def __init__(self, *, quick=False, compiling="some"):
        self.plan, self.compiling = QUICK if quick else FULL, "none" if quick else compiling
        self.start, self.compile_seconds = time.monotonic(), 0.0
        self.rows, self.tables, self.left = [], defaultdict(dict), defaultdict(list)
        self.took, self._truth = {}, (None, None)
        self._cache = tempfile.TemporaryDirectory()  # nothing is compiled already
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = self._cache.name
        if quick:
            self.left["of each bench but the first workload, on one thread, what compiles first"].append("--quick")

    def truth(self, function, arguments):
        """Of the reference in float64 on one thread. The numbers of threads of one workload follow each other."""
        key = label(function, arguments)
        if self._truth[0] != key:
            torch.set_num_threads(1)
            self._truth = key, in_float64(function, arguments)
        return self._truth[1]

    def why_not(self, key, threads):
        """Why this row is not raced, or None."""
        if time.monotonic() - self.start > self.plan.limit:
            return f"the {self.plan.limit} s of the races were over"
        if threads != THREADS[0] and self.took.get(key, 0) > SLOW_ROW:
            return f"on {threads} thread: took more than {SLOW_ROW} s on {THREADS[0]}"
        return None

    def may_compile(self, name, group, threads, seconds):
        """Whether a row that has compiled for so many seconds compiles this way too; if not, the reason is kept."""
        reason = None
        if self.compiling == "none":
            reason = "what compiles first"
        elif name.startswith("jax") and threads != THREADS[0]:
            reason = f"on other than {THREADS[0]} threads, as it keeps those of its start"
        elif self.compiling == "all":
            return True
        elif threads != THREADS[0]:
            reason = f"what compiles first, on other than {THREADS[0]} threads (--all-compiled)"
        elif any(word in group for word in LIKE_PROTO_LOSS) and not name.startswith("jax"):
            reason = f"what compiles first, of {' and '.join(LIKE_PROTO_LOSS)} (--all-compiled)"
        elif seconds > ROW_COMPILING and name.startswith("compiled"):  # a library races all the same
            reason = f"compiled ways of rows that have compiled for {ROW_COMPILING} s (--all-compiled)"
        elif self.compile_seconds > self.plan.compiling:
            reason = f"what compiles first: the {self.plan.compiling} s for it were over"
        if reason and name not in self.left[reason]:
            self.left[reason].append(name)
        return reason is None

    def results(self):
        facts = machine(processor(), "cpu") | library()
        if any(way.startswith("jax") for row in self.rows for way in row["contenders"]):
            facts |= jax_ways.facts()
        counts = [n for n in THREADS if any(row["threads"] == n for row in self.rows)]
        facts["ceilings"] = {f"{n} thread{'s' if n > 1 else ''}": ceilings(n) for n in counts}
        left = [f"{reason}: {', '.join(what)}" for reason, what in self.left.items()]
        return {"machine": facts, "rows": self.rows, "tables": self.tables, "left out": left}


def library():
    """Which fastmeta this is, and what it runs on here."""
    commit = first_line("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    return {"fastmeta": fastmeta.__version__, "commit": commit, "instructions": fastmeta._C.isa()}
