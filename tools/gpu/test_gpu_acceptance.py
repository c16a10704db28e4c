"""What `make gpu` runs, without a GPU: the whole command on CPU tensors, and where there is none, stand-ins for CUDA's graphs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import forks
from harness.places import ROOT, WITH_TOOLS

BENCH = ROOT / "bench"
SMALL = ("--device", "cpu", "--small")
# A second thread would mostly wait; what the rehearsal would not run is not collected.
FEW_TESTS = os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "--ignore-glob=*/test_[!p]*.py"}
PARTS = ["build", "tests", "races", "memcheck", "racecheck", "races of what compiles first"]
STANDINS = """
import contextlib
import torch
from measure.timing import captured
from gpu.race import Race
from gpu.report import faults, markdown
from gpu import model
from gpu import race as gpu_race
from measure import counts, roofline

graphs = []

class Graph:
    def __init__(self):
        self.replays = 0
        graphs.append(self)

    def replay(self):
        self.replays += 1

@contextlib.contextmanager
def capture(graph, stream):
    assert stream == "the current stream"
    yield

class Generator:
    state = "drawn from"

    def clone_state(self):
        return self.state

    def graphsafe_set_state(self, state):
        self.state = state

torch.cuda.CUDAGraph, torch.cuda.graph, torch.cuda.current_stream = Graph, capture, lambda: "the current stream"
torch.cuda.default_generators, torch.cuda.current_device = [Generator()], lambda: 0
torch.cuda.get_device_name = lambda: "NVIDIA H100 80GB HBM3"
roofline.rates = lambda threads, device: (1e12, 1e13)
found = []
right = lambda: (torch.ones(3), torch.arange(4.0))
"""


def command(*options):
    return [sys.executable, "-m", "gpu.acceptance", *options]


def in_bench(code, seconds=300):
    """What the code prints, run in a process that has bench/ on its path."""
    env = WITH_TOOLS
    done = forks.run("-c", STANDINS + code, env=env, seconds=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    done = subprocess.run(command(*SMALL, "--results", folder), capture_output=True, text=True, env=FEW_TESTS)
    return done, json.loads((folder / "cpu.json").read_text()), (folder / "cpu.md").read_text()


def test_every_part_runs_or_says_why_not(rehearsal):
    done, results, _ = rehearsal
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results["parts"]) == PARTS
    states = {name: part["state"] for name, part in results["parts"].items()}
    assert states == dict(zip(PARTS, ["not run", "passed", "passed", "not run", "not run", "passed"], strict=True))
    assert all(results["parts"][tool]["words"] == "needs a GPU" for tool in ("memcheck", "racecheck"))
    assert results["tests"]["counts"]["passed"] >= 5 and results["tests"]["failed"] == []


def test_every_op_and_learner_races(rehearsal):
    _, results, text = rehearsal
    races = results["races"]
    for op in ("mlp_meta_loss", "mlp_adapt", "mlp_hvp", "proto_loss", "prototypes", "sgd_step", "ProtoNet", "hvp"):
        group = next(group for group in races if group.startswith(op))
        assert races[group]["seconds"]["fastmeta"] > 0 and races[group]["not timed"] == {}
        assert f"| {group} | " in text
    (meta_loss,) = (race for group, race in races.items() if group.startswith("mlp_meta_loss"))
    assert {"fastmeta", "learner.loss", "reference", "by hand", "autograd", "vmap"} <= set(meta_loss["seconds"])
    (prototypes,) = (race for group, race in races.items() if group.startswith("prototypes"))
    assert set(prototypes["seconds"]) == {"fastmeta", "reference", "vmap", "compiled"}  # both passes in one row
    assert "| memcheck | not run |" in text and "- torch: " in text


def test_a_part_ends_at_its_limit(tmp_path):
    start = time.monotonic()
    done = subprocess.run(command(*SMALL, "--seconds", "2", "--results", tmp_path), capture_output=True, text=True)
    assert time.monotonic() - start < 60  # not a timing: the whole takes longer than the limit by imports alone
    parts = json.loads((tmp_path / "cpu.json").read_text())["parts"]
    assert parts["tests"]["state"] == "incomplete" and "stopped after 2 s" in parts["tests"]["words"]
    assert parts["races"] == {"state": "not run", "words": "the 2 s were over", "seconds": 0.0}
    assert "tests | incomplete" in (tmp_path / "cpu.md").read_text(), done.stdout


def test_what_is_cut_off_leaves_its_files_and_no_process(tmp_path):
    words = command(*SMALL, "--results", tmp_path)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env=FEW_TESTS) as process:
        found = tmp_path / "cpu.json"
        while not (found.exists() and json.loads(found.read_text())["races"]):
            assert process.poll() is None
            time.sleep(0.2)
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) != 0
    assert len(child) == 1 and not Path(f"/proc/{child[0]}").exists()
    results = json.loads(found.read_text())
    assert results["parts"]["tests"]["state"] == "passed" and "races" not in results["parts"]
    assert next(iter(results["races"])) in (tmp_path / "cpu.md").read_text()


def test_a_command_ends_with_the_one_that_reads_its_lines(tmp_path):
    code = f"""
import sys
from pathlib import Path
from gpu.acceptance import run
command = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]
try:
    run(command, 500, Path({str(tmp_path / "log")!r}), on_line=lambda line: sys.exit(line), cwd=".")
except SystemExit as ended:
    print("ended by", ended)
"""
    assert in_bench(code, seconds=100) == "ended by 1\n"


def test_a_wrong_result_is_told_and_not_timed():
    code = """
race = Race("cpu", found.append, small=True)
for wrong in (lambda: (torch.ones(3), torch.arange(4.0) + 0.1), lambda: (torch.ones(3), torch.full((4,), torch.nan)),
              lambda: (torch.ones(3), torch.ones(5)), lambda: right()[:1], lambda: 1 / 0):
    race("planted", {"ext": wrong, "reference": right, "too": wrong, "other": right}, floor=(1, 1))
    assert set(found[-1]["seconds"]) == {"reference", "other"} and len(faults(found[-1], "cpu")) == 1
    print(faults(found[-1], "cpu")[0])
race("right", {"ext": right, "reference": right})
assert set(found[-1]["seconds"]) == {"fastmeta", "reference"} and not faults(found[-1], "cpu")
"""
    errors = in_bench(code).splitlines()
    words = ("error 0.19", "error nan", "shape [5] for [4]", "1 results for 2", "ZeroDivisionError: division by zero")
    for line, word in zip(errors, words, strict=True):
        assert line.startswith(f"planted: fastmeta: {word}"), errors


def test_graphs_are_warmed_up_captured_once_and_replayed():
    code = """
calls = []
replay = captured(lambda: calls.append(len(graphs)) or len(calls))
assert calls == [0, 0, 0, 1] and [replay(), replay()] == [4, 4] and graphs[0].replays == 2
print("done")
"""
    assert in_bench(code) == "done\n"


def test_each_way_races_as_a_graph_too():
    """What cannot be captured is told: of ours a fault, of others not. The prediction of the card stands beside."""
    code = """
capturing = False

@contextlib.contextmanager
def capture(graph, stream):
    global capturing
    assert torch.cuda.default_generators[0].state == "drawn from"
    capturing, torch.cuda.default_generators[0].state = True, "captured"
    try:
        yield
    except RuntimeError:
        raise ValueError("the capture could not be ended")
    finally:
        capturing = False
    torch.cuda.default_generators[0].state = "drawn from"

def synchronises():
    if capturing:
        raise RuntimeError("operation not permitted when stream is capturing\\nmore")
    return right()

torch.cuda.graph = capture
race = Race("cuda", found.append, small=True)
race("graphs", {"ext": right, "reference": right, "other": synchronises}, floor=(4e6, 0), launches=counts.mean(25))
race("uncaptured", {"ext": synchronises, "reference": right})
both, ours = found
assert set(both["seconds"]) == {"fastmeta", "fastmeta, graph", "reference", "reference, graph", "other"}
assert set(both["not timed"]) == {"other, graph"} and not faults(both, "cuda")
assert both["floor"] == 4e-6 and both["predicted"]["eager"] > 2 * model.LATENCY["eager"]
assert torch.cuda.default_generators[0].state == "drawn from"
print(*faults(ours, "cuda"), sep="\\n")
text = markdown({"machine": {"device": "H100"}, "parts": {}, "races": {race["group"]: race for race in found}})
print([line for line in text.splitlines() if line.startswith("| graphs")][0].count("|"))
"""
    fault = "uncaptured: fastmeta, graph: RuntimeError: operation not permitted when stream is capturing"
    assert in_bench(code).splitlines() == [fault, "9"]


def test_without_a_gpu_the_command_says_so(tmp_path):
    code = "import sys, torch; torch.cuda.is_available = lambda: False; sys.argv = ['gpu.py']; import gpu; gpu.main()"
    env = WITH_TOOLS
    done = forks.run("-c", code, env=env, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == "make gpu: there must be a CUDA device that torch sees, got none\n"


def test_a_part_that_fails_or_does_not_end_is_no_acceptance():
    code = """
from gpu import acceptance as gpu
from pathlib import Path
for device, name, state, expected in (
    ("cpu", "tests", "failed", True), ("cuda", "tests", "incomplete", True), ("cuda", "build", "not run", True),
    ("cuda", "memcheck", "not run", False), ("cuda", "memcheck", "failed", True), ("cuda", "races", "passed", False),
    ("cuda", "races of what compiles first", "incomplete", False),
):
    acceptance = gpu.Acceptance(device, True, Path("."))
    acceptance.results["parts"][name] = {"state": state}
    assert bool(acceptance.failed()) == expected, (device, name, state)
print("done")
"""
    code = "torch.cuda.get_device_capability = lambda: (9, 0)\n" + code
    assert in_bench(code) == "done\n"


def test_outside_a_gpu_the_tests_of_a_gpu_are_the_same_but_for_their_tensors():
    """FASTMETA_DEVICE=cuda: no emulated kernels, no ext where there is no CUDA C++, Triton for what has it."""
    words = ["-m", "pytest", ROOT / "tests", "-m", "not cpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = forks.run(*words, env=os.environ | {"FASTMETA_DEVICE": "cuda"}, cwd=ROOT)
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(ids) > 1000 and not [i for i in ids if "emulated" in i]
    assert not [i for i in ids if "ext" in i.split("[")[-1] and "proto" in i.split("[")[-1]]
    for op, backend in (
        ("proto_loss", "triton"),
        ("sgd_step", "triton"),
        ("mlp_meta_loss", "ext"),
        ("mlp_hvp_ggn", "ext"),
    ):
        assert f"tests/ops/test_cuda.py::test_a_graph_computes_anew_from_what_lies_in_its_inputs[{op}-{backend}]" in ids
