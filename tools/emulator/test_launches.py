"""Calls of Triton kernels that are replayed: launch_checks.py, in a process of its own."""

import json
import subprocess
import sys

import pytest

from emulator import stub_driver
from emulator.launch_checks import CHECKS
from harness.places import WITH_TOOLS

pytestmark = [pytest.mark.cpu, pytest.mark.skipif(bool(stub_driver.why_not()), reason=str(stub_driver.why_not()))]


@pytest.mark.gate
def test_what_is_replayed_launches_what_the_ordinary_way_does():
    command = [sys.executable, "-m", "emulator.launch_checks"]
    done = subprocess.run(command, env=WITH_TOOLS, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    assert list(found) == list(CHECKS)
    assert not any(found.values()), "\n".join(f"{name}: {wrong}" for name, wrong in found.items() if wrong)
