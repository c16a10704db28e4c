"""The acceptance on a GPU machine, within fifteen minutes and with nothing to download: what `make gpu` runs.

    python3 tools/gpu/acceptance.py [--stage smoke|suite|races|sanitize] [--seconds 870] [--results DIR] [--device cpu] [--small]

Each stage builds the extension for this card alone, into build/gpu, which is quick where it is there. Then

    smoke      every kernel once: derivatives of three orders against float64, and a dozen races; within four minutes
    suite      the tests on CUDA tensors
    races      every op and learner against its alternatives, with TF32 off and on, then what compiles first
    sanitize   a few tests under compute-sanitizer's memcheck and racecheck

and without --stage all of these. Each file of tests and each bench has a process of its own, so that a crash ends one of them and is
named. At a limit a process gets SIGINT, and SIGKILL ten seconds later. What is known is written to DIR/<gpu>.json and .md after every
step, logs to DIR/logs. Exit status 1 where a part failed, or one that must pass did not end. --device cpu --small: a rehearsal
without a GPU.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # as a script
    sys.path[0:1] = [str(Path(__file__).resolve().parents[2] / place) for place in ("tools", "examples", "csrc", "")]

import torch
from toolchain import ARCHITECTURES

from fastmeta import reference
from gpu import report, tests
from gpu.processes import WORK, ended, last_line, run
from harness.places import ROOT, WITH_TOOLS
from measure.benches import modules
from measure.machine import file_name, machine
from measure.results import as_json, write

LIBRARY = WORK / "lib"
SANITIZED = "test_gradients_only_where_asked and not reference"
STAGES = {  # parts, and the s that each may take; the most telling first
    "smoke": {"derivatives": 120, "a dozen races": 110},
    "suite": {"tests": 250},
    "races": {"races": 150, "races in TF32": 100, "races of what compiles first": 120},
    "sanitize": {"memcheck": 45, "racecheck": 45},
}
MUST_PASS = ("build", "derivatives", "tests", "races")


class Acceptance:
    """`results` is what is written. A part is a method (seconds) -> (state, words), state "passed", "failed", "incomplete" or "not run"."""

    def __init__(self, device, small, folder):
        self.device, self.small, self.folder, self.logs = device, small, folder, folder / "logs"
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.name = file_name(name)
        self.results = {"machine": machine(name, device), "parts": {}, "groups": {}, "races": {}}
        self.env = {"FASTMETA_DEVICE": device, "PYTHONPATH": WITH_TOOLS["PYTHONPATH"]}
        if device == "cuda":
            self.env["PYTHONPATH"] = f"{LIBRARY}{os.pathsep}{self.env['PYTHONPATH']}"

    def write(self):
        write(self.folder / f"{self.name}.json", as_json(self.results))
        write(self.folder / f"{self.name}.md", report.markdown(self.results))

    def run_stages(self, stages, seconds):
        """The parts for which there is no acceptance."""
        end = time.monotonic() + seconds
        parts = {
            "build": self.build,
            "derivatives": self.derivatives,
            "a dozen races": lambda s: self.races(s, "a dozen races", "--first"),
            "tests": self.tests,
            "races": lambda s: self.races(s, "races"),
            "races in TF32": lambda s: self.races(s, "races in TF32", "--tf32"),
            "races of what compiles first": lambda s: self.races(s, "races of what compiles first", "--compile"),
            "memcheck": lambda s: self.sanitizer("memcheck", s),
            "racecheck": lambda s: self.sanitizer("racecheck", s),
        }
        self.logs.mkdir(parents=True, exist_ok=True)
        self.write()
        limits = {"build": 200} | {name: limit for stage in stages for name, limit in STAGES[stage].items()}
        for name, limit in limits.items():
            start = time.monotonic()
            left = min(limit, end - start)
            state, words = parts[name](left) if left > 0 else ("not run", f"the {seconds:.0f} s were over")
            took = time.monotonic() - start
            self.results["parts"][name] = {"state": state, "words": words, "seconds": round(took, 1)}
            print(f"{name}: {state}: {words} ({took:.0f} s)", flush=True)
            self.write()
        return self.failed()

    def failed(self):
        return [
            name
            for name, part in self.results["parts"].items()
            if part["state"] == "failed" or (self.device == "cuda" and name in MUST_PASS and part["state"] != "passed")
        ]

    def build(self, seconds):
        log = self.logs / "build.log"
        if self.device != "cuda":
            return "not run", "the kernels of a CPU are built by make install"
        of_card = "{}{}".format(*torch.cuda.get_device_capability())
        archs = next((arch for arch in ARCHITECTURES if arch.rstrip("a") == of_card), of_card)
        command = [sys.executable, "setup.py", "build", "--build-lib", LIBRARY, "--build-temp", WORK / "objects"]
        status = run(command, seconds, log, cwd=ROOT, FASTMETA_BUILD="cuda", FASTMETA_CUDA_ARCHS=archs)
        if status != 0:
            return "failed", f"stopped after {seconds:.0f} s" if status is None else last_line(log)
        info = []
        if run([sys.executable, "-m", "fastmeta.info"], 60, log, info.append, **self.env) != 0:
            return "failed", last_line(log)
        self.results["info"] = info
        return "passed", f"built for sm_{archs} and imported"

    def derivatives(self, seconds):
        ops = sorted(set(reference.__all__) - {"hvp"})
        return self.groups("derivatives", tests.derivatives(["sgd_step"] if self.small else ops, self.device), seconds)

    def tests(self, seconds):
        groups = tests.files()
        if self.small:
            groups = {
                name: [*words, "-k", "test_by_hand"] for name, words in groups.items() if "test_prototypes" in name
            }
        return self.groups("tests", groups, seconds)

    def groups(self, part, groups, seconds):
        of_part = self.results["groups"].setdefault(part, {})

        def tell(name, found):
            of_part[name] = found
            if found["state"] != "passed":
                print(f"  {name}: {found['state']}: {found['words']}", flush=True)
            self.write()

        end = time.monotonic() + seconds
        tests.run_groups(groups, end, self.logs, self.env, tests.workers(), tell)
        states = [found["state"] for found in of_part.values()]
        passed = sum(found.get("counts", {}).get("passed", 0) for found in of_part.values())
        bad = [name for name, found in of_part.items() if found["state"] == "failed"]
        words = f"{passed} tests passed, {states.count('passed')} of {len(groups)} groups"
        if bad or not passed:
            return "failed", f"{words}; failed: {', '.join(bad) or 'no test ran'}"
        return ("passed" if states.count("passed") == len(groups) else "incomplete"), words

    def races(self, seconds, part, *options):
        """Each bench in a process of its own."""
        end, done, bad, left = time.monotonic() + seconds, [], [], []
        names = modules()[:12] if "--first" in options else modules()
        if self.small:
            names = ["prototypes"] if options else ["mlp_meta_loss", "learners"]

        def on_line(line):
            if not line.startswith('{"'):
                return
            found = json.loads(line)
            left.extend(found.get("left", []))
            self.results["machine"] |= {key: found[key] for key in found if "per second" in key or key == "missing"}
            if "group" in found:
                done.append(found)
                merge(self.results["races"].setdefault(found["group"], {}), found)
                self.write()

        for i, name in enumerate(names):
            if (now := end - time.monotonic()) < 5:
                left += names[i:]
                break
            command = [sys.executable, "-m", "gpu.race", self.device, name, "--seconds", 0.9 * now - 3, *options]
            log = self.logs / f"{part}: {name}.log"
            status = run([*command, *["--small"] * self.small], now, log, on_line, **self.env)
            if status:
                bad.append(f"{name}: {ended(status)}: {last_line(log)}")
        bad += [of for group in done for of in report.faults(group, self.device)]
        words = "; ".join([f"{len(done)} groups", *bad, *([f"left for time: {', '.join(left)}"] if left else [])])
        return ("failed" if bad or not done else "incomplete" if left else "passed"), words

    def sanitizer(self, tool, seconds):
        if self.device != "cuda":
            return "not run", "needs a GPU"
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(program).exists():
            return "not run", "there is no compute-sanitizer"
        log, words = self.logs / f"{tool}.log", [ROOT / "tests/ops/test_derivatives.py", "-k", SANITIZED]
        command = [program, "--tool", tool, "--error-exitcode", 9, *tests.PYTEST, *words]
        env = self.env | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor an allocation, with bounds of its own
        status = run(command, seconds, log, **env)
        summary = [line.strip("= ") for line in log.read_text().splitlines() if "SUMMARY" in line]
        if status is None:
            return "incomplete", f"stopped after {seconds:.0f} s"
        return ("failed" if status else "passed"), (summary or [last_line(log)])[-1]


def merge(into, found):
    for key, value in found.items():
        into[key] = into[key] | value if isinstance(into.get(key), dict) else value


def main():
    parser = argparse.ArgumentParser(description="accepts fastmeta on the GPU of this machine")
    parser.add_argument("--stage", choices=STAGES, help="one alone; else all of them")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="two of each kind: a rehearsal")
    parser.add_argument("--seconds", type=float, default=870)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("make gpu: stopped"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here would be by those that are started
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("make gpu: there must be a CUDA device that torch sees, got none")
    acceptance = Acceptance(options.device, options.small, options.results.resolve())
    for fact, value in acceptance.results["machine"].items():
        print(f"{fact}: {value}")
    failed = acceptance.run_stages([options.stage] if options.stage else list(STAGES), options.seconds)
    print(f"written: {acceptance.folder / acceptance.name}.json and .md")
    sys.exit(f"not accepted: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
