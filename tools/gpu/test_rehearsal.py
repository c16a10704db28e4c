"""The whole of `make gpu` on CPU tensors."""

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

pytestmark = pytest.mark.gate
SMALL = ("--device", "cpu", "--small")
ONE_THREAD = WITH_TOOLS | {"OMP_NUM_THREADS": "1"}  # a second one would mostly wait
PARTS = [
    "build", "derivatives", "a dozen races", "tests", "races", "races in TF32", "races of what compiles first", "memcheck",
    "racecheck",
]  # fmt: skip


def command(*options):
    return [sys.executable, "-m", "gpu.acceptance", *options]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    done = subprocess.run(command(*SMALL, "--results", folder), capture_output=True, text=True, env=ONE_THREAD)
    return done, json.loads((folder / "cpu.json").read_text()), (folder / "cpu.md").read_text()


def test_every_part_runs_or_says_why_not(rehearsal):
    done, results, _ = rehearsal
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results["parts"]) == PARTS
    states = {name: part["state"] for name, part in results["parts"].items()}
    assert {name for name, state in states.items() if state != "passed"} == {"build", "memcheck", "racecheck"}
    assert all(results["parts"][tool]["words"] == "needs a GPU" for tool in ("memcheck", "racecheck"))
    (of_op,), (of_file,) = (results["groups"][part].values() for part in ("derivatives", "tests"))
    assert (
        of_op["counts"]["passed"] >= 6
        and of_file["counts"]["passed"] >= 1
        and of_op["failed"] == of_file["failed"] == []
    )


def test_every_op_and_learner_races(rehearsal):
    _, results, text = rehearsal
    races = results["races"]
    for op in ("mlp_meta_loss", "prototypes", "ProtoNet"):
        group = next(group for group in races if group.startswith(op))
        assert races[group]["seconds"]["fastmeta"] > 0 and races[group]["not timed"] == {}
        assert f"| {group} | " in text
    assert {race["tolerance"] for race in races.values()} == {
        1e-3,
        2e-2,
    } and "within 0.02 of their norm, in TF32" in text
    (meta_loss,) = (race for group, race in races.items() if group.startswith("mlp_meta_loss"))
    assert {"fastmeta", "learner.loss", "reference", "by hand", "autograd", "vmap"} <= set(meta_loss["seconds"])
    prototypes = next(race for group, race in races.items() if group.startswith("prototypes"))
    assert set(prototypes["seconds"]) == {"fastmeta", "reference", "vmap", "compiled"}  # both passes in one row
    assert "| memcheck | not run |" in text and "- torch: " in text


def test_a_part_ends_at_its_limit(tmp_path):
    start = time.monotonic()
    done = subprocess.run(
        command(*SMALL, "--seconds", "2", "--results", tmp_path), capture_output=True, text=True, env=ONE_THREAD
    )
    assert time.monotonic() - start < 60  # not a timing: the whole takes longer than the limit by imports alone
    parts = json.loads((tmp_path / "cpu.json").read_text())["parts"]
    assert parts["derivatives"]["state"] == "failed" and "no test ran" in parts["derivatives"]["words"]
    assert parts["races"] == {"state": "not run", "words": "the 2 s were over", "seconds": 0.0}
    assert "derivatives | failed" in (tmp_path / "cpu.md").read_text(), done.stdout


def test_what_is_cut_off_leaves_its_files_and_no_process(tmp_path):
    words = command(*SMALL, "--stage", "races", "--results", tmp_path)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env=ONE_THREAD) as process:
        found = tmp_path / "cpu.json"
        while not (found.exists() and json.loads(found.read_text())["races"]):
            assert process.poll() is None
            time.sleep(0.2)
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) != 0
    assert len(child) == 1 and not Path(f"/proc/{child[0]}").exists()
    results = json.loads(found.read_text())
    assert list(results["parts"]) == ["build"]
    assert next(iter(results["races"])) in (tmp_path / "cpu.md").read_text()


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
