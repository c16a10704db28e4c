"""What each learner is trained with on Omniglot, and learners from files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint
import learners
import persist
from common import Learner

QUERIES = 5  # images of a class, in training and test


class Recipe(NamedTuple):
    """What a learner is trained with where the options do not say."""

    tasks: int = 8  # of a meta-iteration
    steps: int = 1000  # meta-iterations
    lr: float = 5e-3  # Adam's, at the start
    inner_lr: float = 0.4
    inner_steps: int = 1
    test_steps: int | None = None  # inner steps of the test; None: as in training
    ways: int | None = None  # None: as in the test
    shots: int | None = None  # None: as in the test
    options: dict[str, Any] = {}  # noqa: RUF012 - of the learner
    outer: str = "adam"  # the meta-optimiser; "sgd": as in Reptile's paper
    rate_lr: float = 1.0  # of Meta-SGD's rates, over lr


OF_RECIPE = ("tasks", "steps", "lr", "inner_lr", "inner_steps", "test_steps")  # what options change
RECIPES = {
    "protonet": Recipe(tasks=1, steps=1500, lr=2e-3, ways=20),
    "matching-net": Recipe(tasks=1, lr=2e-3, ways=20, options={"temperature": 0.1}),
    "matching-net-fce": Recipe(tasks=1, lr=2e-3, ways=20, options={"temperature": 0.1}),
    "maml": Recipe(),
    "meta-sgd": Recipe(inner_lr=0.1),  # its paper starts from rates of up to 0.1
    "anil": Recipe(steps=200, inner_steps=5),
    "proto-maml": Recipe(tasks=4, steps=200, inner_lr=0.1),
    "reptile": Recipe(2, 100, inner_lr=3e-3, inner_steps=5, test_steps=10, shots=10, options={"optimiser": "adam"}),
    "imaml": Recipe(tasks=2, steps=150, lr=2e-3, inner_lr=0.01, inner_steps=16),
    "leo": Recipe(tasks=4, steps=600, lr=0.01),
}


TEMPERATURES = tuple({"temperature": value} for value in (0.02, 0.05, 0.1))
SEARCH: dict[str, dict[str, tuple[Any, ...]]] = {  # of omniglot.py --table: every combination, in place of the recipe's
    "protonet": {"lr": (1e-3, 2e-3, 5e-3), "ways": (20, 40)},
    "matching-net": {"options": TEMPERATURES, "lr": (1e-3, 2e-3)},
    "matching-net-fce": {"options": TEMPERATURES, "lr": (1e-3, 2e-3)},
    "maml": {"inner_lr": (0.1, 0.4), "lr": (2e-3, 5e-3), "inner_steps": (1, 3)},
    "meta-sgd": {"rate_lr": (3.0, 10.0), "lr": (2e-3, 5e-3)},
    "anil": {"inner_lr": (0.2,), "lr": (2e-3, 5e-3), "test_steps": (20,)},
    "proto-maml": {"inner_lr": (0.1, 0.4), "lr": (2e-3, 5e-3), "inner_steps": (1, 3)},
    "reptile": {
        "outer": ("sgd",), "options": ({},), "test_steps": (20,), "lr": (0.5, 1.0), "inner_lr": (0.4, 1.0), "tasks": (1, 4),
    },
    "imaml": {
        "options": ({"strength": 0.1}, {"strength": 0.5}), "inner_lr": (0.1, 0.2), "inner_steps": (5, 8), "tasks": (4,),
    },
    "leo": {"options": ({"dropout": 0.0}, {"dropout": 0.1}), "lr": (2e-3, 5e-3)},
}  # fmt: skip

MANY_WAYS: dict[str, dict[str, tuple[Any, ...]]] = {  # of that, with more than 10 ways
    "meta-sgd": {"rate_lr": (0.3, 1.0)},  # faster ones overfit in ten minutes: docs/reproductions.md
    "imaml": {"tasks": (1,), "inner_lr": (0.05, 0.1), "inner_steps": (16,)},  # 0.4 ends near chance: the same page
}


def candidates(learner: str, ways: int) -> list[Recipe]:
    """What the search tries. With more than 10 ways a meta-iteration has a quarter of the tasks, at least 1."""
    recipe, axes = RECIPES[learner], SEARCH[learner]
    if ways > 10:
        recipe, axes = recipe._replace(tasks=max(1, recipe.tasks // 4)), axes | MANY_WAYS.get(learner, {})
    return [recipe._replace(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def settings(learner: str, recipe: Recipe, hidden: int) -> dict[str, Any]:
    """What `build` takes; the recipe with its ways."""
    loop = {"inner_lr": recipe.inner_lr, "inner_steps": recipe.inner_steps}
    return {"learner": learner, "ways": recipe.ways, "hidden": hidden, **recipe.options, **loop}


def build(settings: dict[str, Any]) -> Learner:
    """`settings`: what `learners.build` takes; `embedding` are those of a network whose encoder LEO is to embed with."""
    known = dict(settings)
    if "embedding" in known:
        known["embedding"] = build(known["embedding"]).encoder
    return learners.build(**known)


def load(path: Path) -> tuple[Learner, dict[str, Any]]:
    """A learner that --save wrote, and its settings."""
    found = persist.load(path)
    checkpoint.keys(path, "a learner", found, ("settings", "state"))
    settings = found["settings"]
    try:
        if (
            not {settings["learner"], settings.get("embedding", settings)["learner"]} <= {*RECIPES}
            or settings["ways"] < 1
        ):
            raise ValueError("an unknown learner")
        learner = build(settings)
    except Exception as error:  # whatever other settings come upon
        raise ValueError(f"{path} must hold the settings of a learner that --save wrote, got {settings}") from error
    checkpoint.fits(path, "state", learner.state_dict(), found["state"])
    learner.load_state_dict(found["state"])
    return learner, settings
