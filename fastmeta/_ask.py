"""An op that runs in a learner's name: its errors name the learner and the learner's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Found = TypeVar("Found")

# The learner's arguments by the names that ops have for them.
OF_SUPPORT = {"inputs": "support_x", "targets": "support_y", "labels": "support_y", "support": "the encoder's output"}
OF_FEATURES = {"query": "the encoder's output", "targets": "query_y"}


def ask(learner: str, op: Callable[..., Found], renamed: Mapping[str, str], *args: Any, **options: Any) -> Found:
    """op(*args, **options), whose errors name the learner and, by `renamed`, its arguments."""
    try:
        return op(*args, **options)
    except (TypeError, ValueError) as error:
        begin, _, rest = str(error).partition(": ")
        if not op.__name__.startswith(begin.removeprefix("ragged.")):  # mlp_meta_loss_and_outputs is mlp_meta_loss
            raise
        first, _, others = rest.partition(" ")
        raise type(error)(f"{learner}: {renamed.get(first, first)} {others}") from None
