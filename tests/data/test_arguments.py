"""Every public name of fastmeta.data, each argument in turn with what it cannot be: the name says what must hold, and then works on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastmeta.data import (
    Episodes,
    Glyphs,
    ImageFolder,
    Omniglot,
    Sinusoid,
    TaskGenerator,
    TaskSampler,
    _fonts,
    image_folder,
    sample_episodes,
)
from harness.archives import characters, write

pytestmark = pytest.mark.cpu

IMAGES = torch.zeros(4, 5, 2)
NO_INTS = [None, "3", b"3", 3.0, math.nan, True, [3], {}, object(), torch.tensor(3), np.float64(3), np.bool_(True), 3j]
HUGE = [2**63, 10**30, 10**5000]
NO_COUNTS = [*NO_INTS, 0, -1, -(10**5000), np.int64(0), *HUGE]
NO_PATHS = [3, True, 3.0, b"folder", ["folder"], object()]
NO_DEVICES = ["nowhere", "", 3.5, True, [], object(), "cpu:-1", -1, 10**30]
NO_GENERATORS = [0, True, "cpu", [], object(), torch.Generator, TaskGenerator(0, 0, 1), torch.rand]

# By name: a call with these arguments works; of each argument, what it cannot be. `"/..."`: in the test's folder.
CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, list[Any]]]] = {
    "sample_episodes": (
        sample_episodes,
        {"images": IMAGES, "tasks": 2, "ways": 2, "shots": 1, "queries": 1, "generator": None},
        {
            "images": [None, 3, "x", [[0.0]], IMAGES.numpy(), IMAGES.long(), IMAGES > 0, IMAGES[0, 0], IMAGES[:0],
                       IMAGES + 0j, IMAGES.to_sparse(), torch.tensor(0.0)],
            **dict.fromkeys(("tasks", "shots"), NO_COUNTS),
            "ways": [*NO_COUNTS, 5],  # there are 4 classes, of 5 examples
            "queries": [*NO_COUNTS, 5],
            "generator": NO_GENERATORS,
        },
    ),
    "Sinusoid": (
        Sinusoid,
        {"frequency": (1.0, 1.0)},
        {"frequency": [None, 1.0, "12", b"12", {1, 2}, (1,), (1, 2, 3), (1, "2"), (True, 1), (1j, 2), (2, 1), (0, math.nan),
                       (-math.inf, 0), (0, 10**5000)]},
    ),
    "Sinusoid.sample": (
        Sinusoid().sample,
        {"tasks": 2, "shots": 1, "queries": 1, "generator": None, "device": None, "dtype": torch.float32},
        {
            **dict.fromkeys(("tasks", "shots", "queries"), NO_COUNTS),
            "generator": NO_GENERATORS,
            "device": NO_DEVICES,
            "dtype": [None, "float32", float, np.float32, 3, torch.int64, torch.bool, torch.complex64, torch.float8_e5m2],
        },
    ),
    "Episodes.to": (
        lambda **options: sample_episodes(IMAGES, 1, 1, 1, 1).to(**options),
        {"device": "cpu"},
        {"device": [None, *NO_DEVICES]},
    ),
    "TaskGenerator": (
        lambda **options: TaskGenerator(**options).rand(2, 3),
        {"seed": 0, "first": 0, "count": 2},
        {"seed": NO_INTS, "first": [*NO_INTS, -1, *HUGE], "count": NO_COUNTS},
    ),
    "TaskGenerator.rand": (
        lambda count, size, device: TaskGenerator(0, 0, 2).rand(count, size, device=device),
        {"count": 2, "size": 3, "device": None},
        {"count": [*NO_COUNTS, 3], "size": [*NO_INTS, -1, *HUGE], "device": NO_DEVICES},
    ),
    "TaskSampler": (
        lambda **options: next(TaskSampler(**options)),
        {"draw": lambda count, generator: Sinusoid().sample(count, 1, 1, generator=generator), "tasks": 4, "seed": 0,
         "rank": 0, "world_size": 2},
        {
            "draw": [None, 3, "draw", IMAGES, []],
            "tasks": [*NO_COUNTS, 3],
            "seed": NO_INTS,
            "rank": [*NO_INTS, -1, 2, *HUGE],
            "world_size": [*NO_COUNTS, 3],
        },
    ),
    "Glyphs": (
        Glyphs,
        {"split": "train", "size": 4, "examples": 1, "seed": 0, "cache": "/"},
        {
            "split": [None, 3, True, "val", b"train", ["train"], {}, IMAGES],
            "size": NO_COUNTS,
            "examples": NO_COUNTS,
            "seed": [*NO_INTS, -(2**63) - 1, 2**64, *HUGE[1:]],
            "cache": [*NO_PATHS, "a\0b"],
        },
    ),
    "Omniglot": (
        Omniglot,
        {"root": "/", "archive": "small", "alphabets": None, "size": 28, "rotations": False},
        {
            "root": [None, *NO_PATHS, "a\0b", "missing", "x" * 5000],
            "archive": [None, *NO_PATHS, "a\0b", "missing", "x" * 5000],
            "alphabets": ["Runes", b"Runes", 3, True, [3], [None], [], ["Elvish"], [["Runes"]], IMAGES],
            "size": NO_COUNTS,
            "rotations": [None, 0, 1, 90, "yes", [], 1.0, IMAGES],
        },
    ),
    "image_folder": (
        image_folder,
        {"root": "/own", "size": 4, "channels": 3, "classes": None, "cache": "/"},
        {
            "root": [None, *NO_PATHS, "a\0b", "missing", "x" * 5000],
            "size": NO_COUNTS,
            "channels": [*NO_INTS, -1, 0, 2, 4, *HUGE],
            "classes": [3, True, [3], [None], [], ["b"], ["a", "a"], [["a"]], IMAGES],
            "cache": [*NO_PATHS, "a\0b"],
        },
    ),
    "ImageFolder.split": (
        ImageFolder(IMAGES, ["a", "b", "c"], [1, 2, 1]).split,
        {"classes": 1},
        {"classes": [*NO_COUNTS, 3]},
    ),
    "ImageFolder.to": (ImageFolder(IMAGES, ["a"], [4]).to, {"device": "cpu"}, {"device": [None, *NO_DEVICES]}),
}  # fmt: skip
PREFIX = {"TaskGenerator.rand": "TaskGenerator"}
NAMED = {
    "count": "(count|shape)",
    "size": "(size|shape)",
    "archive": "(archive|root)",
    "ways": "(ways|images)",
    "world_size": "(world_size|ranks)",
    "queries": "(queries|images)",
}
ARGUMENTS = [(name, argument) for name, (*_, wrong) in CASES.items() for argument in wrong]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arguments")
    write(folder, "small", characters("small", {"Runes": 1}))
    (folder / "own" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "own" / "a" / "0.png")
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Glyphs of two short alphabets and one face."""
    monkeypatch.setattr(_fonts, "SCRIPTS", {"train": {"Latin": "A-C"}, "test": {"Hebrew": "\u05d0-\u05d1"}})
    monkeypatch.setattr(_fonts, "LIGHT", ("DejaVuSans",))
    monkeypatch.setattr(_fonts, "BOLD", ())


def placed(arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    def is_ours(value: Any) -> bool:
        return isinstance(value, str) and value.startswith("/")

    return {name: folder / value[1:] if is_ours(value) else value for name, value in arguments.items()}


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_wrong_argument_is_named_and_the_next_call_works(name: str, argument: str, folder: Path) -> None:
    call, right, wrong = CASES[name]
    right = placed(right, folder)
    for value in wrong[argument]:
        with pytest.raises((TypeError, ValueError, FileNotFoundError)) as raised:
            call(**right | {argument: value})
        said = str(raised.value)
        assert re.match(rf"{PREFIX.get(name, name)}: .* must .*, got ", said, re.S), said
        assert re.search(rf"\b{NAMED.get(argument, argument)}\b", said), said
    call(**right)


@pytest.mark.parametrize("name", CASES)
def test_numpys_ints_are_ints(name: str, folder: Path) -> None:
    call, right, _ = CASES[name]
    for kind in (np.int64, np.uint8):
        ints = {key: kind(value) for key, value in right.items() if type(value) is int}
        call(**placed(right, folder) | ints)


def test_numpys_ints_give_what_ints_give() -> None:
    drawn = [
        sample_episodes(torch.rand(4, 5, 2, generator=torch.Generator().manual_seed(0)), *counts, generator=generator)
        for counts, generator in (
            ((2, 2, 1, 1), TaskGenerator(7, 3, 2)),
            (np.array([2, 2, 1, 1]), TaskGenerator(np.int64(7), np.int32(3), np.uint8(2))),
        )
    ]
    assert isinstance(drawn[1], Episodes) and all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


STATES = [
    None, 3, "state", [], [("seed", 0), ("next", 4)], {}, {"seed": 0}, {"next": 0}, {"seed": 0, "next": 4, "rank": 0},
    *({"seed": seed, "next": 4} for seed in NO_INTS),
    *({"seed": 0, "next": following} for following in (*NO_INTS, -1, -4, *HUGE)),
]  # fmt: skip


def test_a_state_that_is_none_is_refused_and_the_sampler_stays_as_it_was() -> None:
    sampler, other = (
        TaskSampler(lambda count, generator: Sinusoid().sample(count, 1, 1, generator=generator), 4, seed=5)
        for _ in range(2)
    )
    next(sampler), next(other)
    for state in STATES:
        with pytest.raises((TypeError, ValueError)) as raised:
            sampler.load_state_dict(state)  # type: ignore[arg-type]
        said = str(raised.value)
        assert said.startswith("TaskSampler.load_state_dict: ") and " must " in said and ", got " in said, said
        assert sampler.state_dict() == {"seed": 5, "next": 4}
    assert torch.equal(next(sampler).query_x, next(other).query_x)
