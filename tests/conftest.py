"""One process tests every backend that the device has: harness/device.py."""

from pathlib import Path

from harness.device import DEVICE  # first: it chooses Triton's interpreter, before anything imports triton
from harness.fixtures import _fresh, allow_tf32, backend  # noqa: F401

collect_ignore = [] if DEVICE == "cuda" else ["ops/test_cuda.py"]


def pytest_ignore_collect(collection_path):
    """pytest leaves out folders called build, which tests/build is not the kind of."""
    return False if collection_path == Path(__file__).parent / "build" else None
