"""One process tests every backend that the device has: harness/device.py."""

from harness.device import DEVICE  # first: it chooses Triton's interpreter, before anything imports triton
from harness.fixtures import _fresh, allow_tf32, backend  # noqa: F401

collect_ignore = [] if DEVICE == "cuda" else ["ops/test_cuda.py"]
