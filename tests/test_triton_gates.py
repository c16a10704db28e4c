"""The machine code of the Triton kernels, for GPUs that are not here: no spills, loads of 16 bytes, tensor cores where allowed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = (  # shape (see triton_gates.py), architecture, ops
    "few@90@prototypes@proto_log_softmax@proto_loss@matching_log_probs",
    "few half@80@proto_loss",
    "many double@90@proto_loss",
    "many@90@proto_loss",
    "many tf32@100@proto_loss",
    "many half@90@proto_log_softmax@matching_log_probs",
    "many half@gfx942@proto_loss",
)


@pytest.fixture(scope="module")
def found():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("triton_gates.py")
    run = subprocess.run(
        [sys.executable, script, *RUNS],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=script.parents[1],
        env=environment,
    )
    return json.loads(run.stdout)


def test_a_spill_is_seen(found):
    ((shape, *_, report), *_) = found
    assert shape == "planted" and report["spilled"] > 0, report


def test_no_kernel_spills(found):
    assert [x for x in found[1:] if x[-1]["spilled"]] == []
    assert len(found) == 1 + 2 * sum(run.count("@") - 1 for run in RUNS)  # one launch each way


def test_loads_are_wide(found):
    assert [x for x in found[1:] if x[-1]["wide_loads"] == 0] == []


def test_tensor_cores_where_they_are_allowed(found):
    for shape, arch, kernel, report in found[1:]:
        assert (report["tensor_core"] > 0) == (shape in ("many tf32", "many half")), (shape, arch, kernel, report)
