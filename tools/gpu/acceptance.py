"""The acceptance on a GPU machine, within ten minutes and with nothing to download: what `make gpu` runs.

    python -m gpu.acceptance [--device cpu] [--small] [--seconds 570] [--results DIR]

Builds the extension into build/gpu, runs the tests on CUDA tensors, races every op and learner, runs a few tests under
compute-sanitizer, then races what compiles first. Each part has its limit; what is known is written to DIR/<gpu>.json and .md
after every part and every race, so that a run that is cut off leaves them. Logs are in build/gpu. Exit status 1 where a part
failed, or one of the first three did not come to its end. --device cpu --small: a rehearsal without a GPU.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from gpu import report
from harness.places import ROOT, WITH_TOOLS
from measure.machine import file_name, machine
from measure.results import as_json, write

WORK = ROOT / "build/gpu"
LIBRARY = WORK / "lib"
OUTCOME = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)")
SANITIZED = "test_gradients_only_where_asked and not reference"
MUST_PASS = ("build", "tests", "races")


def run(command, seconds, log, on_line=lambda line: None, cwd=WORK, **env):
    """The exit status of a command, None where it was stopped after so many seconds. Its lines go to the log and to on_line."""
    stopped = threading.Event()
    with (
        log.open("w") as file,
        subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=os.environ | env, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ) as process,
    ):  # fmt: skip

        def stop():
            stopped.set()
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                on_line(line.rstrip("\n"))
        except BaseException:  # also the end of this process
            stop()
            raise
        finally:
            timer.cancel()
    return None if stopped.is_set() else process.returncode


def last_line(log):
    lines = log.read_text().strip().splitlines()
    return lines[-1] if lines else "no output"


class Acceptance:
    """`results` is what is written; a part is a method (seconds) -> (state, words), state "passed", "failed", "incomplete" or
    "not run"."""

    def __init__(self, device, small, folder):
        self.device, self.small, self.folder = device, small, folder
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.name = file_name(name)
        self.results = {"machine": machine(name, device), "parts": {}, "races": {}}
        self.env = {"FASTMETA_DEVICE": device, "PYTHONPATH": WITH_TOOLS["PYTHONPATH"]}
        if device == "cuda":
            self.env["PYTHONPATH"] = f"{LIBRARY}{os.pathsep}{self.env['PYTHONPATH']}"

    def write(self):
        write(self.folder / f"{self.name}.json", as_json(self.results))
        write(self.folder / f"{self.name}.md", report.markdown(self.results))

    def run_parts(self, seconds):
        end = time.monotonic() + seconds
        parts = {  # the most telling first; s
            "build": (self.build, 200),
            "tests": (self.tests, 170),
            "races": (self.races, 180),
            "memcheck": (lambda s: self.sanitizer("memcheck", s), 40),
            "racecheck": (lambda s: self.sanitizer("racecheck", s), 40),
            "races of what compiles first": (lambda s: self.races(s, compiling=True), seconds),
        }
        WORK.mkdir(parents=True, exist_ok=True)
        self.write()
        for name, (part, limit) in parts.items():
            start = time.monotonic()
            left = min(limit, end - start)
            state, words = part(left) if left > 0 else ("not run", f"the {seconds:.0f} s were over")
            took = time.monotonic() - start
            self.results["parts"][name] = {"state": state, "words": words, "seconds": round(took, 1)}
            print(f"{name}: {state}: {words} ({took:.0f} s)", flush=True)
            self.write()
        return self.failed()

    def failed(self):
        """The parts for which there is no acceptance."""
        return [
            name
            for name, part in self.results["parts"].items()
            if part["state"] == "failed" or (self.device == "cuda" and name in MUST_PASS and part["state"] != "passed")
        ]

    def build(self, seconds):
        log = WORK / "build.log"
        if self.device != "cuda":
            return "not run", "the kernels of a CPU are built by make install"
        command = [sys.executable, "setup.py", "build", "--build-lib", LIBRARY, "--build-temp", WORK / "objects"]
        if (status := run(command, seconds, log, cwd=ROOT, FASTMETA_BUILD="cuda")) != 0:
            return "failed", f"stopped after {seconds:.0f} s" if status is None else last_line(log)
        info = []
        if run([sys.executable, "-m", "fastmeta.info"], 60, log, info.append, **self.env) != 0:
            return "failed", last_line(log)
        self.results["info"] = info
        return "passed", "built and imported"

    def tests(self, seconds):
        if not importlib.util.find_spec("pytest"):
            return "failed", "needs pytest, which is missing"
        outcomes = {}

        def on_line(line):
            found = OUTCOME.search(line) if "::" in line else None
            if found:
                outcomes[re.sub(r"\[ *\d+%\]|\[gw\d+\]", "", line.replace(found[0], "", 1)).strip()] = found[0]

        log, command = WORK / "tests.log", [*self.pytest(), ROOT / "tests"]
        if importlib.util.find_spec("xdist") and not self.small:
            command += ["-n", min(os.cpu_count() or 1, 12)]
        if self.small:
            command += ["-k", "test_by_hand or test_equals_the_dense_hessian"]
        status = run(command, seconds, log, on_line, **self.env)
        counts = {kind.lower(): list(outcomes.values()).count(kind) for kind in sorted(set(outcomes.values()))}
        bad = sorted(test for test, outcome in outcomes.items() if outcome in ("FAILED", "ERROR"))
        self.results["tests"] = {"counts": counts, "failed": bad}
        words = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or last_line(log)
        if status is None:
            return "incomplete", f"{words}; stopped after {seconds:.0f} s"
        return ("failed", f"{words}; {last_line(log)}") if status or not outcomes else ("passed", words)

    def pytest(self):
        """On the tests that do not need a CPU; from the sources' folder `import fastmeta` would find no kernels."""
        plain = (
            "-o",
            "addopts=--strict-markers --import-mode=importlib",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
            "-rN",
            "-v",
        )
        options = *plain, "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-m", "not cpu"
        return [sys.executable, "-m", "pytest", *options]

    def sanitizer(self, tool, seconds):
        if self.device != "cuda":
            return "not run", "needs a GPU"
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(program).exists():
            return "not run", "there is no compute-sanitizer"
        log, tests = WORK / f"{tool}.log", [ROOT / "tests/ops/test_derivatives.py", "-k", SANITIZED]
        command = [program, "--tool", tool, "--error-exitcode", 9, *self.pytest(), *tests]
        env = self.env | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor an allocation, with bounds of its own
        status = run(command, seconds, log, **env)
        summary = [line.strip("= ") for line in log.read_text().splitlines() if "SUMMARY" in line]
        if status is None:
            return "incomplete", f"stopped after {seconds:.0f} s"
        return ("failed" if status else "passed"), (summary or [last_line(log)])[-1]

    def races(self, seconds, compiling=False):
        left, done = ["everything"], []

        def on_line(line):
            nonlocal left
            if not line.startswith('{"'):
                return
            found = json.loads(line)
            left = found.get("left", left)
            self.results["machine"] |= {key: found[key] for key in found if "per second" in key}
            if "group" in found:
                done.append(found)
                merge(self.results["races"].setdefault(found["group"], {}), found)
                self.write()

        log = WORK / ("races_compiled.log" if compiling else "races.log")
        options = ["--compile"] * compiling + ["--small"] * self.small
        command = [sys.executable, "-m", "gpu.race", self.device, "--seconds", 0.85 * seconds - 3, *options]
        status = run(command, seconds, log, on_line, **self.env)
        bad = [of for group in done for of in report.faults(group, self.device)]
        words = "; ".join([f"{len(done)} groups", *bad, *([f"left for time: {', '.join(left)}"] if left else [])])
        if bad or (status and not done):
            return "failed", words if done else last_line(log)
        return ("incomplete" if left or status != 0 else "passed"), words


def merge(into, found):
    for key, value in found.items():
        into[key] = into[key] | value if isinstance(into.get(key), dict) else value


def main():
    parser = argparse.ArgumentParser(description="accepts fastmeta on the GPU of this machine")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="one race of each op, few tests: a rehearsal")
    parser.add_argument("--seconds", type=float, default=570)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("make gpu: stopped"))
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("make gpu: there must be a CUDA device that torch sees, got none")
    acceptance = Acceptance(options.device, options.small, options.results)
    for fact, value in acceptance.results["machine"].items():
        print(f"{fact}: {value}")
    failed = acceptance.run_parts(options.seconds)
    print(f"written: {acceptance.folder / acceptance.name}.json and .md")
    sys.exit(f"not accepted: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
