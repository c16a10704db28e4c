"""What `make gpu` runs, without a GPU: its parts, with stand-ins for CUDA's graphs; test_rehearsal.py has the whole."""

import contextlib
import signal
import sys
import types
from typing import ClassVar

import pytest
import torch

from gpu import acceptance, tests
from gpu.processes import run
from gpu.race import Race
from gpu.report import faults, markdown
from harness.places import WITH_TOOLS
from measure import machine
from measure.timing import captured

ONE_THREAD = WITH_TOOLS | {"OMP_NUM_THREADS": "1"}  # a second one would mostly wait


def test_a_command_ends_with_the_one_that_reads_its_lines(tmp_path):
    words = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]
    with pytest.raises(SystemExit, match="1"):
        run(words, 500, tmp_path / "log", on_line=sys.exit, cwd=tmp_path)


@pytest.fixture
def heeded():
    """SIGINT as a terminal's programs have it: those in a shell's background inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_at_its_limit_a_command_can_tell_what_it_has(tmp_path):
    """SIGINT first; what does not heed it is killed."""
    for program, grace, told in (
        (
            "try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('so far', flush=True)",
            60,
            ["begun", "so far"],
        ),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(600)", 1, ["begun"]),
    ):
        lines = []
        words = [sys.executable, "-c", f"import signal, time\nprint('begun', flush=True)\n{program}"]
        assert run(words, 2, tmp_path / "log", lines.append, cwd=tmp_path, grace=grace) is None
        assert lines == told


PLANTED = """
import os
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_{0}(): {1}
def test_after(): pass
"""


@pytest.mark.parametrize(
    ("name", "does", "words"),
    [
        ("crash", "os.abort()", "1 failed, 1 passed"),
        (
            "lost",
            "raise RuntimeError('CUDA error: an illegal memory access was encountered')",
            "the device is lost since",
        ),
    ],
)
def test_a_crash_or_a_lost_device_ends_its_group_and_is_named(tmp_path, name, does, words):
    (tmp_path / "test_planted.py").write_text(PLANTED.format(name, does))
    found = tests.run_group([tmp_path / "test_planted.py"], 60, tmp_path / "log", ONE_THREAD)
    assert found["state"] == "failed" and words in found["words"] and f"test_{name}" in found["words"]
    log = (tmp_path / "log").read_text()
    assert "assert 1 == 2" in log.split(f"test_{name}")[0], "its traceback came as it happened"
    assert "test_after PASSED" not in log


class Graph:
    """In place of CUDA's, as are the others."""

    made: ClassVar[list] = []
    replays = 0

    def __init__(self):
        self.made.append(self)

    def replay(self):
        self.replays += 1


class Generator:
    state = "drawn from"

    def clone_state(self):
        return self.state

    def graphsafe_set_state(self, state):
        self.state = state


@pytest.fixture
def cuda(monkeypatch):
    """A device of which torch.cuda knows just what a race asks for; whether a capture is under way."""
    now = types.SimpleNamespace(capturing=False)

    @contextlib.contextmanager
    def capture(graph, stream):
        (generator,) = torch.cuda.default_generators
        assert stream == "the current stream" and generator.state == "drawn from"
        now.capturing, generator.state = True, "captured"
        try:
            yield
        except RuntimeError:
            raise ValueError("the capture could not be ended") from None
        finally:
            now.capturing = False
        generator.state = "drawn from"

    standins = {
        "CUDAGraph": Graph, "graph": capture, "current_stream": lambda: "the current stream", "current_device": lambda: 0,
        "default_generators": [Generator()],
    }  # fmt: skip
    for name, standin in standins.items():
        monkeypatch.setattr(torch.cuda, name, standin)
    monkeypatch.setattr(Graph, "made", [])
    monkeypatch.setattr(machine, "ceilings", lambda threads, device: (1e12, 1e13))
    return now


def right():
    return torch.ones(3), torch.arange(4.0)


WRONG = {
    "error 0.19": lambda: (torch.ones(3), torch.arange(4.0) + 0.1),
    "error nan": lambda: (torch.ones(3), torch.full((4,), torch.nan)),
    "shape [5] for [4]": lambda: (torch.ones(3), torch.ones(5)),
    "1 results for 2": lambda: right()[:1],
    "ZeroDivisionError: division by zero": lambda: 1 / 0,
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_result_is_told_and_not_timed(words):
    found, ways = [], {"ext": WRONG[words], "reference": right, "too": WRONG[words], "other": right}
    Race("cpu", found.append, small=True)("planted", ways)
    (fault,) = faults(found[0], "cpu")
    assert set(found[0]["seconds"]) == {"reference", "other"} and fault.startswith(f"planted: fastmeta: {words}")


def test_graphs_are_warmed_up_captured_once_and_replayed(cuda):
    calls = []
    replay = captured(lambda: calls.append(len(Graph.made)) or len(calls))
    assert calls == [0, 0, 0, 1] and [replay(), replay()] == [4, 4] and Graph.made[0].replays == 2


def test_each_way_races_as_a_graph_too(cuda):
    """What cannot be captured is told: of ours a fault, of others not."""

    def synchronises():
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return right()

    found = []
    race = Race("cuda", found.append, small=True)
    race("graphs", {"ext": right, "reference": right, "other": synchronises}, floor=(4e6, 0))
    race("uncaptured", {"ext": synchronises, "reference": right})
    both, ours = found
    assert set(both["seconds"]) == {"fastmeta", "fastmeta, graph", "reference", "reference, graph", "other"}
    assert set(both["not timed"]) == {"other, graph"} and not faults(both, "cuda") and both["floor"] == 4e-6
    reason = "RuntimeError: operation not permitted when stream is capturing"
    assert faults(ours, "cuda") == [f"uncaptured: fastmeta, graph: {reason}"]
    text = markdown(
        {"machine": {"device": "H100"}, "parts": {}, "groups": {}, "races": {race["group"]: race for race in found}}
    )
    assert next(line for line in text.splitlines() if line.startswith("| graphs")).count("|") == 8


def test_without_a_gpu_the_command_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["acceptance"])
    with pytest.raises(SystemExit, match="make gpu: there must be a CUDA device that torch sees, got none"):
        acceptance.main()


@pytest.mark.parametrize(
    ("device", "name", "state", "fails"),
    [
        ("cpu", "tests", "failed", True), ("cuda", "tests", "incomplete", True), ("cuda", "build", "not run", True),
        ("cuda", "memcheck", "not run", False), ("cuda", "memcheck", "failed", True), ("cuda", "races", "passed", False),
        ("cuda", "races of what compiles first", "incomplete", False),
    ],
)  # fmt: skip
def test_a_part_that_fails_or_does_not_end_is_no_acceptance(monkeypatch, tmp_path, device, name, state, fails):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    of_device = acceptance.Acceptance(device, True, tmp_path)
    of_device.results["parts"][name] = {"state": state}
    assert bool(of_device.failed()) == fails
