"""Sizes of problems: their tasks, which arguments the tasks share, how many examples."""

from __future__ import annotations

from collections.abc import Sequence

from .draw import Draw

LEADS: dict[tuple[int, ...], float] = {(): 4, (1,): 1, (2,): 4, (3,): 2, (5,): 1, (2, 2): 1.5, (0,): 0.7}
COUNTS = (0, 1, 1, 2, 3, 3, 5, 7, 13)


def lead_of(draw: Draw) -> tuple[int, ...]:
    return tuple(min(n, draw.cap) for n in draw.pick("lead", LEADS))


def own(draw: Draw, lead: Sequence[int]) -> Sequence[int]:
    """The batch dimensions of one argument: all, or none, so that the tasks share it."""
    return () if lead and draw.odd("shared", 0.3) else lead


def big(draw: Draw, small: int, *options: int) -> int:
    """Over the blocks of a kernel, now and then."""
    return draw.size("big size", options) if draw.odd("big", 0.06) else small
