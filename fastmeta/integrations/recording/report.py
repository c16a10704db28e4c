"""What ran how: `explain`."""

from __future__ import annotations

import os
from collections import Counter

ON = os.environ.get("FASTMETA_RECORD", "1") != "0"
WAYS = ("batched", "alone", "replayed", "plain")
_counts: Counter[tuple[str, str, str]] = Counter()  # (way, what, why)


class Report(list[tuple[str, int, str, str]]):
    """Rows (way, how often, what, why), the most frequent first; printed as text."""

    def __str__(self) -> str:
        lines = [f"{way:9} {count:7} x  {what}" + (f": {why}" if why else "") for way, count, what, why in self]
        return "\n".join(lines) or ("nothing was recorded" if ON else "recording is off: FASTMETA_RECORD=0")


def note(way: str, what: str, why: str = "", count: int = 1) -> None:
    _counts[way, what, why] += count


def explain(clear: bool = False) -> Report:
    """How the programs on `fastmeta.integrations` have run, since the start or the last `explain(clear=True)`: a list of rows
    (way, how often, what, why), which prints as text.

    batched: losses of several tasks in one native call. alone: one task in a native call. replayed: recorded, then computed
    operation by operation. plain: not recorded. `why` tells what kept it from more.
    """
    found = Report((way, count, what, why) for (way, what, why), count in _counts.most_common())
    if clear:
        _counts.clear()
    return found
