"""Everything a case draws, from its token: `SEED[-oddity]...[@cap]`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NO_TABLE = ("dlpack0", 0.06)  # the oddity of a process that runs without torch's table for DLPack, and its chance


class Draw:
    """Each name has its own sequence of numbers, so that leaving an oddity out changes nothing else."""

    def __init__(self, token: str) -> None:
        head, _, cap = token.partition("@")
        seed, *without = head.split("-")
        self.seed, self.without, self.cap = int(seed), frozenset(without), int(cap or 2**40)
        self.seen: list[str] = []  # oddities, which shrinking may leave out
        self.notes: list[str] = []  # the case in words
        self._drawn: Counter[str] = Counter()

    def random(self, name: str) -> random.Random:
        self._drawn[name] += 1
        return random.Random(f"{self.seed}/{name}/{self._drawn[name]}")

    def odd(self, name: str, chance: float) -> bool:
        """Whether an oddity is there."""
        if self.random(name).random() >= chance or name in self.without:
            return False
        if name not in self.seen:
            self.seen.append(name)
        return True

    def pick(self, name: str, options: Sequence[Any] | Mapping[Any, float]) -> Any:
        """One of a sequence, or of a mapping to weights."""
        if isinstance(options, Mapping):
            return self.random(name).choices(list(options), list(options.values()))[0]
        return self.random(name).choice(options)

    def size(self, name: str, options: Sequence[int]) -> int:
        return min(self.pick(name, options), self.cap)

    def order(self, most: int) -> int:
        """Of the derivatives; leaving `order3` out gives the second."""
        order = min(self.pick("order", {0: 3, 1: 5, 2: 3, 3: 2}), most)
        while order and f"order{order}" in self.without:
            order -= 1
        if order:
            self.seen.append(f"order{order}")
        return order

    def note(self, text: str) -> None:
        self.notes.append(text)

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.random(name).getrandbits(40))

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator("randn"), dtype=torch.float64)

    def labels(self, classes: int, *shape: int) -> Tensor:
        return torch.randint(max(classes, 1), shape, generator=self.generator("labels"))

    def covering(self, classes: int, *shape: int) -> Tensor:
        """Labels [..., S] with every class, in random order."""
        keys = torch.rand(shape, generator=self.generator("labels"))
        return keys.argsort(-1).remainder(classes)
