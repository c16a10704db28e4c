"""The cache of fastmeta.data.image_folder: whatever is in its file's place, the images are those of a fresh build."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastmeta.data import ImageFolder, _cache, _squares, image_folder
from harness.image_folders import noise, put, read_fixture, root_fixture  # noqa: F401

# isort: split
from harness.damage import mutate

pytestmark = pytest.mark.cpu
Read = Callable[..., ImageFolder]


@pytest.fixture(params=["read", "mapped"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "mapped":
        monkeypatch.setattr(_cache, "_MAPPED", 1)
    return request.param


@pytest.fixture
def file(read: Read, tmp_path: Path) -> Path:
    """The cache's."""
    read()
    (found,) = (tmp_path / "cache").iterdir()
    return found


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each time that the files are decoded, how many."""
    found, squares = [], _squares.squares

    def counted(op: str, files: list[str], size: int, channels: int):  # type: ignore[no-untyped-def]
        found.append(len(files))
        return squares(op, files, size, channels)

    monkeypatch.setattr(_squares, "squares", counted)
    return found


def test_the_cache_is_used(read: Read, file: Path, built: list[int]) -> None:
    first, again = read(), read(cache=str(file.parent))
    assert built == [] and first.images.equal(again.images) and list(file.parent.iterdir()) == [file]


def test_each_root_size_channels_and_choice_has_a_file(
    read: Read, root: Path, tmp_path: Path, built: list[int]
) -> None:
    for _ in range(2):
        read()
        read(13)
        read(channels=1)
        read(classes=["cat", "dog"])
        read(classes=["dog", "cat"])
    assert built == [9, 9, 9, 7, 7] and len(list((tmp_path / "cache").iterdir())) == 5
    root.rename(tmp_path / "other")
    image_folder(tmp_path / "other", 12, cache=tmp_path / "cache")
    assert built[5:] == [9]


def test_a_relative_root_and_a_link_are_the_same(
    read: Read, root: Path, file: Path, built: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    image_folder(".", 12, cache=file.parent)
    (root.parent / "link").symlink_to(root)
    image_folder(root.parent / "link", 12, cache=file.parent)
    assert built == []


CHANGES: dict[str, Callable[[Path], object]] = {
    "another image": lambda root: put(root / "cat" / "1.png", noise(7)),
    "a later time": lambda root: os.utime(
        root / "cat" / "1.png", ns=(0, os.stat(root / "cat" / "1.png").st_mtime_ns + 1)
    ),
    "one more": lambda root: put(root / "cat" / "7.png", noise(7)),
    "one less": lambda root: (root / "cat" / "1.png").unlink(),
    "another name": lambda root: (root / "cat" / "1.png").rename(root / "cat" / "7.png"),
    "another class": lambda root: (root / "cat" / "1.png").rename(root / "ant" / "7.png"),
    "another class's name": lambda root: (root / "cat").rename(root / "cow"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_folder_is_seen(read: Read, root: Path, file: Path, built: list[int], change: str) -> None:
    CHANGES[change](root)
    found = read()
    assert len(built) == 1 and list(file.parent.iterdir()) == [file]
    assert found.images.equal(read(cache=root.parent / "other").images)
    assert read().counts == found.counts and len(built) == 2


def test_another_version_is_made_anew(
    read: Read, file: Path, built: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_squares, "version", lambda op: "0.0")
    read()
    assert built == [9]


def test_a_damaged_file_is_made_anew(read: Read, file: Path, built: list[int], tmp_path: Path) -> None:
    sound, expected = file.read_bytes(), read()
    damages = [b"", sound[:-1], sound + b"\0", bytes(len(sound)), sound[::-1], sound[-32:], b"no pixels"]
    damages += [mutate(sound, random.Random(seed)) for seed in range(40)]
    for number, damage in enumerate(damages):
        file.unlink()  # another is mapped, and stays
        file.write_bytes(damage)
        assert read().images.equal(expected.images)
        assert len(built) == number + 1 and file.read_bytes() == sound
        assert list(file.parent.iterdir()) == [file]


def test_the_file_of_another_folder_is_not_taken(read: Read, root: Path, file: Path, built: list[int]) -> None:
    """With as many images."""
    sound = file.read_bytes()
    put(root / "cat" / "1.png", noise(9))
    expected = read().images
    file.unlink()
    file.write_bytes(sound)
    assert read().images.equal(expected) and len(built) == 2


@pytest.mark.parametrize("what", ["folder", "pipe", "dangling link", "link to itself", "a file as the folder"])
def test_what_is_no_file_in_its_place_gives_the_images(
    root: Path, file: Path, recwarn: pytest.WarningsRecorder, what: str
) -> None:
    expected = image_folder(root, 12, cache=file.parent).images
    file.unlink()
    cache = file.parent
    match what:
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "dangling link":
            file.symlink_to(root / "nowhere")
        case "link to itself":
            file.symlink_to(file)
        case _:
            cache = root / "cat" / "0.png"
    assert image_folder(root, 12, cache=cache).images.equal(expected)
    said = [warning for warning in recwarn if "cache" in str(warning.message)]
    assert len(said) == (what in ("folder", "a file as the folder"))
    for warning in said:
        assert str(warning.message).startswith("image_folder: the cache must be writable, got [Errno ")
        assert warning.filename == __file__


def test_a_full_disk_leaves_nothing(read: Read, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read().images
    opened = Path.open

    def full(path: Path, mode: str = "r", **options: object):  # type: ignore[no-untyped-def]
        file = opened(path, mode, **options)  # type: ignore[call-overload]
        if mode == "wb":
            file.write(b"half")

            class Full:
                def __enter__(self) -> Full:
                    return self

                def __exit__(self, *_: object) -> None:
                    file.close()

                def write(self, _: object) -> int:
                    raise OSError(errno.ENOSPC, "No space left on device")

            return Full()
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.warns(
        UserWarning, match="image_folder: the cache must be writable, got .*No space left on device; it is"
    ):
        found = image_folder(root, 12, cache=tmp_path / "full")
    assert found.images.equal(expected) and list((tmp_path / "full").iterdir()) == []


def test_a_cache_that_cannot_be_written(
    read: Read, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its folder is another user's, say; and many images are read in parts."""
    expected = read().images

    def locked(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", locked)
    monkeypatch.setattr(_squares, "AT_ONCE", 4)
    with pytest.warns(UserWarning, match="image_folder: the cache must be writable, got .*Permission denied"):
        found = image_folder(root, 12, cache=tmp_path / "locked")
    assert found.images.equal(expected)
    (root / "cat" / "1.png").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="every image must be sound, got 1 that are not"):
        image_folder(root, 12, cache=tmp_path / "locked")


def test_writing_to_the_images_leaves_the_file(read: Read, file: Path, built: list[int]) -> None:
    images = read().images
    expected = images.clone()
    images.zero_()
    assert read().images.equal(expected) and built == []


def test_the_images_outlive_the_file(read: Read, file: Path) -> None:
    images = read().images
    expected = images.clone()
    file.unlink()
    assert images.equal(expected)
    file.write_bytes(b"x")
    assert images.equal(expected)


def test_many_may_make_it_at_once(root: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: image_folder(root, 12, cache=tmp_path / "cache").images, range(8)))
    assert all(images.equal(made[0]) for images in made)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_default_folder_is_that_of_the_glyphs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    image_folder(root, 12)
    assert [path.suffix for path in (tmp_path / "xdg" / "fastmeta").iterdir()] == [".bin"]
