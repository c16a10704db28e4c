"""fastmeta.data.image_folder: each fault of a folder by the names of its files, and what is left out."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastmeta.data import ImageFolder, _squares, image_folder
from harness.image_folders import Image, noise, put, read_fixture, refusal, root_fixture  # noqa: F401

pytestmark = pytest.mark.cpu


def test_broken_images_are_named_in_one_error(root: Path, read: Callable[..., ImageFolder], tmp_path: Path) -> None:
    sound = (root / "cat" / "0.png").read_bytes()
    middle = len(sound) // 2
    broken = {
        "empty.png": b"",
        "text.jpg": b"no image",
        "half.png": sound[:middle],
        "flipped.png": sound[:middle] + bytes([sound[middle] ^ 255]) + sound[middle + 1 :],
        "zeros.png": bytes(len(sound)),
        "page.jpg": b"<html>404</html>",
    }
    for name, data in broken.items():
        (root / "cat" / name).write_bytes(data)
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(root / "dog" / "deep.png")
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(root / "dog" / "float.tif")
    jpeg = io.BytesIO()
    Image.fromarray(noise(0, 64, 64)).save(jpeg, "JPEG")
    (root / "dog" / "cut.jpg").write_bytes(jpeg.getvalue()[:-900])
    said = refusal(read)
    assert said.startswith("image_folder: every image must be sound, got 9 that are not: ")
    for name in (*(f"cat/{name}" for name in broken), "dog/deep.png", "dog/float.tif", "dog/cut.jpg"):
        assert str(root / name) in said, name
    assert "8 bits a channel, got Pillow's mode I;16" in said
    assert list((tmp_path / "cache").iterdir()) == []  # nothing is kept
    for number in range(40):
        (root / "cat" / f"more{number:02}.png").write_bytes(b"")
    said = refusal(read)
    assert "got 49 that are not" in said and said.count(str(root)) == 10 and said.endswith(" and 39 more")


def test_more_broken_images_than_are_held_at_once(
    root: Path, read: Callable[..., ImageFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read().images
    monkeypatch.setattr(_squares, "AT_ONCE", 2)
    assert read(12, cache=root.parent / "other").images.equal(whole)
    (root / "ant" / "0.png").write_bytes(b"")
    (root / "dog" / "3.png").write_bytes(b"")
    said = refusal(read)
    assert f"got 2 that are not: {root}/ant/0.png" in said and f"{root}/dog/3.png" in said


def test_what_is_no_image_is_left_out_with_a_warning(root: Path, read: Callable[..., ImageFolder]) -> None:
    expected = read()
    (root / "README").write_text("beside the folders")
    (root / ".hidden").mkdir()
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "._0.png").write_bytes(b"x")
    assert read().images.equal(expected.images)  # without a warning
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "dog" / "labels.txt").write_text("x")
    with pytest.warns(
        UserWarning, match="^image_folder: images must be named as such, got 2 other files, left out: "
    ) as seen:
        found = image_folder(root, 12, cache=root.parent / "cache")
    assert str(root / "cat" / "Thumbs.db") in str(seen[0].message) and seen[0].filename == __file__
    assert found.images.equal(expected.images)


def test_links_are_followed(root: Path, read: Callable[..., ImageFolder], tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere" / "a.png", noise(1)).parent
    (root / "eel").symlink_to(elsewhere)
    (root / "cat" / "9.png").symlink_to(elsewhere / "a.png")
    found = read()
    assert found.classes == ["ant", "cat", "dog", "eel"] and found.counts == [2, 4, 4, 1]
    assert found.images[5].equal(found.images[-1])


IN_CLASS, NO_FILE = "a class folder must hold no folders", "images must be files"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder in a class": (lambda root: put(root / "cat" / "in" / "0.png", noise(0)), f"{IN_CLASS}, got 1: .*cat/in"),
    "an empty folder in a class": (lambda root: (root / "cat" / "in").mkdir(), IN_CLASS),
    "a link to the root in a class": (lambda root: (root / "cat" / "up").symlink_to(root), IN_CLASS),
    "an empty class": (lambda root: (root / "eel").mkdir(), "a class folder must hold images, got 1: .*eel"),
    "a class of hidden files": (
        lambda root: put(root / "eel" / ".0.png", noise(0)),
        "a class folder must hold images, got 1: .*eel",
    ),
    "an image beside the classes": (
        lambda root: put(root / "0.PNG", noise(0)),
        "images must be in class folders, got 1: .*0.PNG",
    ),
    "a dangling link": (lambda root: (root / "cat" / "x.png").symlink_to(root / "no"), f"{NO_FILE}, got 1: .*x.png"),
    "a link to itself": (lambda root: (root / "cat" / "x.png").symlink_to(root / "cat" / "x.png"), NO_FILE),
    "a pipe": (lambda root: os.mkfifo(root / "cat" / "x.png"), NO_FILE),
    "a class that is a dangling link": (
        lambda root: (root / "eel").symlink_to(root / "no"),
        "links must lead to something, got 1: .*eel",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_folder_is_named(root: Path, read: Callable[..., ImageFolder], fault: str) -> None:
    make, said = FAULTS[fault]
    make(root)
    assert re.match(f"image_folder: {said}", refusal(read))


def test_a_root_that_is_none(root: Path, read: Callable[..., ImageFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (root / "missing", root / "cat" / "0.png", "x" * 5000):
        with pytest.raises(
            FileNotFoundError, match=r"^image_folder: root must be a folder of class folders, got no folder "
        ):
            image_folder(wrong, 12)
    (root.parent / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^image_folder: root must hold class folders, got none in .*empty$"):
        image_folder(root.parent / "empty", 12)
    with pytest.raises(ValueError, match=r"^image_folder: images must be in class folders, got 3: "):
        image_folder(root / "cat", 12)  # a class in the place of the root

    def locked(folder: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "listdir", locked)
    with pytest.raises(PermissionError, match=r"^image_folder: a folder must be readable, got .*Permission denied"):
        read()


def test_pillow_is_asked_for(read: Callable[..., ImageFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        ImportError, match=r"image_folder: pillow must be installed \(pip install fastmeta\[data\]\), got none"
    ):
        read()
