"""The programs and the library whose users know the heads: equal values and gradients, where the library is installed."""

import pytest

from harness.installed_peers import peer
from measure import heads

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("name", heads.ROWS)
def test_equals_its_peers(name):
    if name not in ("GE2E", "AngleProto"):
        peer("pytorch_metric_learning")
    for differences in heads.apart(heads.ROWS[name]).values():
        assert max(differences) < 1e-13
