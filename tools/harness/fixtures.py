"""One process tests every backend that the device has: see device.py."""

import os

# Triton's interpreter is chosen before anything imports triton.
from harness.device import DEVICE, tf32_allowed

from emulator import emulation  # isort: skip
import hypothesis
import pytest
import torch

import fastmeta
from harness import interpreter

emulation.install()
if DEVICE == "cpu":
    interpreter.replace_once()
# The same draws in every run; --hypothesis-profile=default: others.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")
os.environ.pop("PYTEST_XDIST_WORKER", None)  # a pytest that a test starts is no worker


@pytest.fixture(autouse=True)
def _fresh(request):
    """Fixed seeds, new tensors on the tests' device, torch.empty filled with NaN, so that a kernel that forgets an element is
    seen, and no TF32, which torch allows convolutions from the start."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    on_cpu = DEVICE == "cpu" or request.node.get_closest_marker("cpu")
    torch.set_default_device(None if on_cpu else DEVICE)
    with tf32_allowed(False):
        yield
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def backend(request):
    """The backend named by the test's parameters, forced: it raises where it cannot run."""
    with fastmeta.backend(request.param):
        yield request.param


@pytest.fixture
def allow_tf32(request):
    """Whether TF32 is allowed during a test: True, or the test's parameter."""
    allowed = getattr(request, "param", True)
    with tf32_allowed(allowed):
        yield allowed
