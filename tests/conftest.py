"""One process tests every backend: Triton's kernels run in its interpreter where there is no GPU."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

import emulation
import pytest

import fastmeta

emulation.install()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _fresh():
    """Fixed seeds, and torch.empty filled with NaN, so that a kernel that forgets an element is seen."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def backend(request):
    """The backend named by the test's parameters, forced: it raises where it cannot run."""
    with fastmeta.backend(request.param):
        yield request.param
