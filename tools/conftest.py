"""The tests of the workshop: on CPU tensors, whatever the machine has."""

import pytest

from harness.fixtures import _fresh, allow_tf32, backend  # noqa: F401


def pytest_collection_modifyitems(items):
    for item in items:
        if "tools" in item.path.parts:
            item.add_marker(pytest.mark.cpu)
