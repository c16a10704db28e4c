from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmeta.data import Omniglot, sample_episodes
from harness.archives import characters, write
from harness.places import OMNIGLOT

pytestmark = pytest.mark.cpu
needs_omniglot = pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="the Omniglot archives are not beside this checkout")


def test_the_reader_sorts_and_inverts(tmp_path: Path) -> None:
    members = characters("small", {"Runes": 3, "Latin": 2})
    write(tmp_path, "small", members | {"small/": b"", "small/Latin/notes.txt": b"x", "__MACOSX/a/b/c.png": b"x"})
    data = Omniglot(tmp_path, "small", size=7)
    assert data.alphabets == ["Latin", "Runes"]
    assert data.characters == [
        *(("Latin", f"character{n:02}") for n in (1, 2)),
        *(("Runes", f"character{n:02}") for n in (1, 2, 3)),
    ]
    assert data.images.shape == (5, 20, 1, 7, 7)
    assert data.images.dtype == torch.uint8
    for index, row in enumerate((0, 1, 0, 1, 2)):
        for number in range(20):
            peak = int(data.images[index, number, 0].flatten().argmax())
            assert (peak // 7, peak % 7) == (row, number % 7)


def test_full_size_is_the_drawing_and_ink_is_one_once_drawn(tmp_path: Path) -> None:
    write(tmp_path, "small", characters("small", {"Runes": 2}))
    data = Omniglot(tmp_path, "small", size=105)
    expected = torch.zeros(105, 105, dtype=torch.uint8)
    expected[15:30, 45:60] = 255
    assert torch.equal(data.images[1, 3, 0], expected)
    drawn = sample_episodes(data.images, 2, 2, 1, 1)
    assert drawn.support_x.unique().tolist() == [0.0, 1.0]


def test_alphabets_are_chosen_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path, "small", characters("small", {"C": 1, "A": 2, "B": 1}))
    data = Omniglot(tmp_path, "small", alphabets=["C", "A", "C"])
    assert data.alphabets == ["A", "C"]
    assert data.characters == [("A", "character01"), ("A", "character02"), ("C", "character01")]
    assert data.images.shape == (3, 20, 1, 28, 28)


def test_rotations_are_new_classes_turned_counterclockwise(tmp_path: Path) -> None:
    write(tmp_path, "small", characters("small", {"Runes": 2}))
    upright = Omniglot(tmp_path, "small")
    turned = Omniglot(tmp_path, "small", rotations=True)
    assert turned.images.shape == (8, 20, 1, 28, 28)
    assert turned.characters == [
        ("Runes", f"character{n:02}{turn}") for turn in ("", "/rot090", "/rot180", "/rot270") for n in (1, 2)
    ]
    assert turned.alphabets == ["Runes"]
    for quarter in range(4):
        expected = torch.from_numpy(np.rot90(upright.images.numpy(), quarter, axes=(3, 4)).copy())
        assert torch.equal(turned.images[2 * quarter : 2 * quarter + 2], expected)


def test_the_usual_split_is_files_of_classes(tmp_path: Path) -> None:
    for archive, alphabets in (("one", {"B": 2}), ("two", {"A": 2})):
        write(tmp_path, archive, characters(archive, alphabets))
    split = tmp_path / "train.txt"
    split.write_text("B/character02/rot090\nA/character01\n\nB/character02/rot000\n")
    found = Omniglot(tmp_path, ("one", "two"), classes=split, size=21)
    assert found.characters == [("B", "character02/rot090"), ("A", "character01"), ("B", "character02")]
    assert found.alphabets == ["A", "B"]
    turned = Omniglot(tmp_path, "one", rotations=True, size=21)
    for name, image in zip(found.characters, found.images, strict=True):
        if name[0] == "B":
            assert torch.equal(image, turned.images[turned.characters.index(name)])
    names = ["B/character02/rot090", "A/character01", "B/character02"]
    assert torch.equal(Omniglot(tmp_path, ["one", "two"], classes=names, size=21).images, found.images)


@pytest.mark.parametrize(
    "classes, said",
    [
        (["B/character09"], "classes must be characters of one, got B/character09"),
        (["B/character01/rot045"], "classes must be names <alphabet>/<character>/rot090, got 'B/character01/rot045'"),
        (["B"], "got 'B'"),
        (["B/character01", "B/character01/rot000"], "each once, got 2 with 1 different"),
        ([], "at least one, each once, got 0"),
    ],
)
def test_wrong_classes_are_named(tmp_path: Path, classes: list[str], said: str) -> None:
    write(tmp_path, "one", characters("one", {"B": 2}))
    with pytest.raises(ValueError, match=said):
        Omniglot(tmp_path, "one", classes=classes)
    with pytest.raises(ValueError, match="classes must come without alphabets and rotations, got both"):
        Omniglot(tmp_path, "one", classes=["B/character01"], rotations=True)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "small", characters("small", {"Runes": 1}))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        ImportError, match=r"^Omniglot: pillow must be installed \(pip install fastmeta\[data\]\), got none$"
    ):
        Omniglot(tmp_path, "small")


@needs_omniglot
@pytest.mark.parametrize(
    ("archive", "count", "alphabets"),
    [
        ("images_background_small1", 136, ["Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"]),
        ("images_background_small2", 156, ["Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog"]),
    ],
)
def test_the_published_archives(archive: str, count: int, alphabets: list[str]) -> None:
    data = Omniglot(OMNIGLOT, archive)
    assert data.alphabets == alphabets
    assert data.images.shape == (count, 20, 1, 28, 28)
    assert len(set(data.characters)) == count
    assert data.characters == sorted(data.characters)
    ink = data.images.float().mean((1, 2, 3, 4)) / 255
    assert float(ink.min()) > 0.02 and float(ink.max()) < 0.2  # thin ink on an empty page, not the other way round
    assert float(data.images.flatten(2).amax(-1).min()) > 100  # no empty page


@needs_omniglot
def test_scaling_keeps_the_amount_of_ink_and_the_place_of_the_strokes() -> None:
    full = Omniglot(OMNIGLOT, "images_background_small1", alphabets=["Latin"], size=105).images.float()
    small = Omniglot(OMNIGLOT, "images_background_small1", alphabets=["Latin"], size=28).images.float()
    assert float(small.mean()) == pytest.approx(float(full.mean()), rel=5e-3)
    area = torch.nn.functional.interpolate(full.flatten(0, 1), (28, 28), mode="area").view_as(small)
    assert float(torch.corrcoef(torch.stack([area.flatten(), small.flatten()]))[0, 1]) > 0.97
