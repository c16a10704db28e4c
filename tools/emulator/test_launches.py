"""Calls of Triton kernels that are replayed: launch_checks.py, in a process of its own."""

import json
import subprocess
import sys

import pytest

from emulator import stub_driver
from emulator.launch_checks import CHECKS
from harness.places import WITH_TOOLS

pytestmark = [pytest.mark.cpu, pytest.mark.skipif(bool(stub_driver.why_not()), reason=str(stub_driver.why_not()))]


@pytest.fixture(scope="module")
def found():
    command = [sys.executable, "-m", "emulator.launch_checks"]
    return json.loads(subprocess.run(command, env=WITH_TOOLS, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.mark.parametrize("name", CHECKS)
def test_launches(found, name):
    assert found[name] is None, found[name]
