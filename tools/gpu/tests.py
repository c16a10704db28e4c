"""Groups of tests, each in a process of its own: a crash or a lost device ends one group and is named."""

import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from gpu.processes import ended, last_line, run
from harness.places import ROOT

OUTCOME = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)")
BEGUN = re.compile(r"\S+::\S+")
NO_TESTS = 5
PYTEST = [  # on the tests that do not need a CPU; from the sources' folder `import fastmeta` would find no kernels
    sys.executable, "-m", "pytest", "-o", "addopts=--strict-markers --import-mode=importlib", "-p", "no:cacheprovider", "-p",
    "gpu.as_they_happen", "-rN", "--no-summary", "-v", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-m", "not cpu",
]  # fmt: skip


def run_groups(groups, end, folder, env, at_once, tell):
    """`groups`: {name: pytest's words}, run `at_once` at a time until the clock says `end`; tell(name, what came of it) after each, one at
    a time."""
    lock = threading.Lock()

    def of_group(name):
        start = time.monotonic()
        found = run_group(groups[name], end - start, folder / f"{name.replace('/', '.')}.log", env)
        with lock:
            tell(name, found | {"seconds": round(time.monotonic() - start, 1)})

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(of_group, groups))


def run_group(words, seconds, log, env):
    if seconds <= 0:
        return {"state": "not run", "words": "no time was left"}
    outcomes, running = {}, []

    def on_line(line):
        found = OUTCOME.search(line) if "::" in line and not line.startswith("traceback of ") else None
        if found:
            outcomes[re.sub(r"\[ *\d+%\]", "", line.replace(found[0], "", 1)).strip()] = found[0]
        elif begun := BEGUN.match(line):
            running[:] = [begun[0]]  # what a crash leaves without an outcome

    status = run([*PYTEST, *words], seconds, log, on_line, **env)
    bad = sorted(test for test, outcome in outcomes.items() if outcome in ("FAILED", "ERROR"))
    counts = {kind.lower(): list(outcomes.values()).count(kind) for kind in sorted(set(outcomes.values()))}
    found = {"counts": counts, "failed": bad, "words": ", ".join(f"{count} {kind}" for kind, count in counts.items())}
    if status is None:
        return found | {"state": "incomplete", "words": f"{found['words']}; stopped after {seconds:.0f} s"}
    if status in (0, NO_TESTS):
        return found | {"state": "passed"}
    if status == 1 and bad:
        return found | {"state": "failed", "words": f"{found['words']}: {', '.join(bad)}"}
    why = f"{ended(status)} in {running[0] if running else 'none'}" if status < 0 else last_line(log)
    return found | {"state": "failed", "words": f"{found['words']}; {why}"}


def files():
    """{file: pytest's words}, the largest first."""
    found = sorted((ROOT / "tests").glob("*/test_*.py"), key=lambda path: -path.stat().st_size)
    return {str(path.relative_to(ROOT)): [path] for path in found if path.parent.name not in ("build", "examples")}


def derivatives(ops, device):
    """{op: pytest's words}: its kernels' values and derivatives of three orders against the reference in float64, and in a CUDA graph."""
    places = [ROOT / "tests/ops/test_derivatives.py", *[ROOT / "tests/ops/test_cuda.py"] * (device == "cuda")]
    orders = "first_order or second_order or third_order or graph"
    return {op: [*places, "-k", f"{op}- and not reference and ({orders})"] for op in ops}


def workers():
    return max(1, min(8, (os.cpu_count() or 1) // 2))
