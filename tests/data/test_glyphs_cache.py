"""The glyphs' cache: whatever is in the file's place, the images are those of a fresh build, and the next file is sound."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fastmeta.data import Glyphs, _fonts, glyphs

pytestmark = pytest.mark.cpu

NAME = "glyphs-28px-20x-seed0.npz"


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short alphabets and one face, built in milliseconds."""
    monkeypatch.setattr(_fonts, "SCRIPTS", {"train": {"Latin": "A-C"}, "test": {"Hebrew": "\u05d0-\u05d1"}})
    monkeypatch.setattr(_fonts, "LIGHT", ("DejaVuSans",))
    monkeypatch.setattr(_fonts, "BOLD", ())


def test_the_cache_is_used_and_holds_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = Glyphs("train", cache=tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [NAME]
    monkeypatch.setattr(glyphs, "_build", lambda *arguments: pytest.fail("built again"))
    assert Glyphs("train", cache=tmp_path / "new" / "folder").images.equal(built.images)
    assert len(Glyphs("test", cache=tmp_path / "new" / "folder").characters) == 2


def test_a_cache_of_another_version_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Glyphs("train", cache=tmp_path)
    monkeypatch.setattr(_fonts, "version", lambda: "0.0")
    monkeypatch.setattr(_fonts, "SCRIPTS", {"train": {"Latin": "A-B"}, "test": {"Hebrew": "\u05d0"}})
    assert len(Glyphs("train", cache=tmp_path).characters) == 2


def test_the_default_folder_honours_xdg_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    Glyphs("train")
    assert (tmp_path / "xdg" / "fastmeta" / NAME).is_file()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Glyphs("train")
    assert (tmp_path / "home" / ".cache" / "fastmeta" / NAME).is_file()


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def damaged(path: Path) -> dict[str, object]:
    """By what is wrong: the arrays to save in the place of the sound ones, or the bytes of the file."""
    with np.load(path) as file:
        sound = dict(file)
    images, names = sound["train_images"], sound["train_characters"]
    content = path.read_bytes()
    middle, other = len(content) // 2, images.copy()
    other[0, 0, 0, 14, 14] ^= 1
    return {
        "no images": {key: value for key, value in sound.items() if key != "train_images"},
        "no characters": {key: value for key, value in sound.items() if key != "train_characters"},
        "no images of the other split": {key: value for key, value in sound.items() if key != "test_images"},
        "no checksum": {"train_images": images, "train_characters": names},
        "cut": content[:-200],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "nothing": {},
        "one more": sound | {"more": images},
        "fewer classes": sound | {"train_images": images[1:]},
        "fewer examples": sound | {"train_images": images[:, :5]},
        "smaller images": sound | {"train_images": images[..., :14, :14]},
        "another order of axes": sound | {"train_images": images.swapaxes(0, 1)},
        "a number": sound | {"train_images": np.array(3)},
        "floats": sound | {"train_images": images / np.float32(255)},
        "signed bytes": sound | {"train_images": images.view(np.int8)},
        "NaN": sound | {"train_images": np.full(images.shape, np.nan)},
        "another pixel": sound | {"train_images": other},
        "another letter": sound | {"train_characters": names[::-1]},
        "letters as bytes": sound | {"train_characters": np.char.encode(names, "utf-8")},
        "objects": sound | {"train_images": np.array([Evil(path.with_name("made"))])},
        "a checksum that is none": sound | {"seal": np.array("0" * 64)},
        "no archive, one array": b"",
        "a pickle": pickle.dumps(Evil(path.with_name("made"))),
        "an empty archive": b"PK\5\6" + bytes(18),
    }


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / NAME
    built = Glyphs("train", cache=tmp_path)
    for wrong, content in damaged(path).items():
        if wrong == "no archive, one array":
            with path.open("wb") as file:
                np.save(file, built.images.numpy())
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, **content)
        again = Glyphs("train", cache=tmp_path)
        assert again.images.equal(built.images) and again.characters == built.characters, wrong
        assert glyphs._load(path, f"{glyphs._recipe()} 28 20 0") is not None, wrong
        assert [file.name for file in tmp_path.iterdir()] == [NAME], wrong  # nothing left beside it, no pickle run


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, "encrypted", "unknown"])
def test_members_that_cannot_be_read_are_made_anew(tmp_path: Path, method: int | str) -> None:
    path = tmp_path / NAME
    built = Glyphs("train", cache=tmp_path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", method if isinstance(method, int) else zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(name, data[: -len(data) // 2] if method == zipfile.ZIP_LZMA else data)
    content = path.read_bytes()
    if isinstance(method, str):
        field, value = {"encrypted": (8, b"\1\0"), "unknown": (10, b"\x63\0")}[method]
        first = content.find(b"PK\1\2")
        path.write_bytes(content[: first + field] + value + content[first + field + 2 :])
    assert Glyphs("train", cache=tmp_path).images.equal(built.images)


def test_a_cache_of_another_size_is_not_taken_for_this_one(tmp_path: Path) -> None:
    Glyphs("train", size=14, cache=tmp_path)
    (tmp_path / "glyphs-14px-20x-seed0.npz").rename(tmp_path / NAME)
    assert Glyphs("train", cache=tmp_path).images.shape[-1] == 28


@pytest.mark.parametrize("way", ["folder", "pipe", "dangling link", "link to itself", "too long a name"])
def test_what_is_no_file_in_its_place_gives_the_images(
    tmp_path: Path, way: str, recwarn: pytest.WarningsRecorder
) -> None:
    built = Glyphs("train", cache=tmp_path / "sound")
    path = tmp_path / NAME
    cache = tmp_path
    match way:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling link":
            path.symlink_to(tmp_path / "nowhere")
        case "link to itself":
            path.symlink_to(path)
        case _:
            cache = tmp_path / ("x" * 300)
    assert Glyphs("train", cache=cache).images.equal(built.images)
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (way in ("folder", "too long a name"))
    assert all(text.startswith("Glyphs: the cache must be writable, got [Errno ") for text in said)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file, *args, **arrays) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(
        UserWarning, match="Glyphs: the cache must be writable, got .*No space left on device; it is built"
    ):
        Glyphs("train", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_many_may_make_it_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: Glyphs("train", cache=tmp_path).images, range(8)))
    assert all(images.equal(made[0]) for images in made)
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
