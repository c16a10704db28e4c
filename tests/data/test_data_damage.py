"""A fixed slice of random damage to archives, drawings and caches: refused, or without a trace in what is read."""

from __future__ import annotations

import random
import struct
import warnings
from pathlib import Path

import pytest

from fastmeta.data import Omniglot
from harness.archives import characters, write
from harness.damage import TARGETS

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("name", TARGETS)
def test_any_damage_is_refused_or_does_not_matter(tmp_path: Path, name: str) -> None:
    attack = TARGETS[name](tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [attack(random.Random(seed)) for seed in range(100)]
    assert found.count("refused") > 80


def test_an_index_that_swallows_a_character_is_refused(tmp_path: Path) -> None:
    """A member's comment that is said to be longer hides the members after it: here all of one character."""
    path = write(tmp_path, "small", characters("small", {"Runes": 2}))
    content = bytearray(path.read_bytes())
    entries, place = [], content.find(b"PK\1\2")
    while place >= 0:
        entries.append(place)
        place = content.find(b"PK\1\2", place + 4)
    first, last = entries[19], content.rfind(b"PK\5\6")  # 20 of the second character come first
    comment = last - entries[20]
    content[first + 32 : first + 34] = struct.pack("<H", comment)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="the archive must be a sound zip file, got .*: it states 40 members, and lists 20"
    ):
        Omniglot(tmp_path, "small")
