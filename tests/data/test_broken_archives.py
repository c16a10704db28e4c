"""Omniglot's archives as they may come to be: each fault is a ValueError that names the file, and nothing is read twice or in part."""

from __future__ import annotations

import os
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from fastmeta.data import Omniglot
from harness.archives import characters, drawing, part, raw_png, write
from harness.damage import TARGETS

pytestmark = pytest.mark.cpu

NAME = "small/Runes/character01/0000_05.png"
MEMBERS = characters("small", {"Runes": 1})


def refusal(folder: Path, **options: object) -> str:
    """What the reader says of the archive; whatever else it raises fails the test, and so does a warning."""
    with warnings.catch_warnings(), pytest.raises(ValueError) as raised:
        warnings.simplefilter("error")
        Omniglot(folder, "small", **options)
    said = str(raised.value)
    assert said.startswith("Omniglot: ") and " must " in said and str(folder / "small.zip") in said, said
    assert "\n" not in said and "object at" not in said, said
    return said


@pytest.mark.parametrize(
    "again",
    [NAME, f"./{NAME}", f"/{NAME}", NAME.replace("/", "\\"), NAME.replace("Runes/", "Runes//"),
     NAME.replace("Runes", "x/../Runes"), NAME.replace("Runes", "runes"), NAME.replace("small", "SMALL")],
)  # fmt: skip
def test_a_drawing_that_stands_twice_is_refused(tmp_path: Path, again: str) -> None:
    """Once in place of another, so that there are 20, and once beside all the others."""
    fewer = {name: data for name, data in MEMBERS.items() if "0000_20" not in name}
    for members in (fewer, MEMBERS):
        write(tmp_path, "small", members, (again, drawing(0, 4)))
        assert re.match(
            "Omniglot: the archive must hold every file once, got .*0000_05.png twice in ", refusal(tmp_path)
        )


def test_names_of_another_platform_are_read(tmp_path: Path) -> None:
    write(tmp_path, "small", MEMBERS)
    expected = Omniglot(tmp_path, "small")
    for change in (lambda name: name.replace("/", "\\"), lambda name: f"./{name}"):
        write(tmp_path, "small", {change(name): data for name, data in MEMBERS.items()})
        data = Omniglot(tmp_path, "small")
        assert data.characters == expected.characters and data.images.equal(expected.images)


def patched(path: Path, local: int, central: int, change: Callable[[bytes], bytes], size: int = 2) -> None:
    """Changes one field of the member NAME in both of its headers."""
    content = bytearray(path.read_bytes())
    for signature, length, offset in ((b"PK\3\4", 30, local), (b"PK\1\2", 46, central)):
        start = content.find(NAME.encode(), 0 if signature == b"PK\3\4" else content.find(b"PK\1\2")) - length
        assert content[start : start + 4] == signature
        content[start + offset : start + offset + size] = change(bytes(content[start + offset : start + offset + size]))
    path.write_bytes(content)


FLAGS, METHOD, CHECKSUM, STATED = (6, 8), (8, 10), (14, 16), (22, 24)  # places in the two headers
UTF8 = b"\xff" + NAME.encode()[1:]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (FLAGS, b"\1\0", "encrypted"),
        (FLAGS, b"\x41\0", "encrypted|strong"),
        (FLAGS, b"\x20\0", "patch"),
        (METHOD, b"\x63\0", "it must be stored or deflated, got method 99"),
        (METHOD, b"\x0c\0", "it must be stored or deflated, got method 12"),
        (METHOD, b"\x0e\0", "it must be stored or deflated, got method 14"),
        (METHOD, b"\0\0", "."),
        (CHECKSUM, b"\0\0\0\0", "CRC"),
        (STATED, struct.pack("<I", 2**18 + 1), "it must have at most 262144 bytes, got 262145"),
        (STATED, struct.pack("<I", 2**32 - 2), "it must have at most 262144 bytes, got 4294967294"),
        (STATED, struct.pack("<I", 100_000), "."),
        (STATED, struct.pack("<I", 50), "."),
    ],
)
def test_a_member_that_cannot_be_read_is_named(tmp_path: Path, field: tuple[int, int], value: bytes, said: str) -> None:
    path = write(tmp_path, "small", MEMBERS)
    patched(path, *field, lambda _: value, len(value))
    found = refusal(tmp_path)
    assert found.startswith(f"Omniglot: a drawing must be a sound PNG, got {NAME} of {path}: ") and re.search(
        said, found
    )


def test_a_member_that_unpacks_to_more_than_it_states_is_not_unpacked(tmp_path: Path) -> None:
    write(tmp_path, "small", MEMBERS | {NAME: drawing(0, 4) + bytes(2**28)})
    patched(tmp_path / "small.zip", *STATED, lambda _: struct.pack("<I", len(drawing(0, 4))), 4)
    refusal(tmp_path)


DRAWINGS = {  # by what is wrong with them: a drawing, and what is said of it
    "60000 pixels a side": (raw_png(width=60_000, height=60_000, rows=1), "must be 105 x 105 pixels, got 60000 x 60000"),
    "10000 pixels a side": (raw_png(width=10_000, height=10_000, rows=1), "must be 105 x 105 pixels, got 10000 x 10000"),
    "2147483647 pixels wide": (raw_png(width=2**31 - 1, height=1, rows=0), "must be 105 x 105 pixels, got 2147483647 x 1"),
    "no rows": (raw_png(height=0), "must be 105 x 105 pixels, got 105 x 0"),
    "too few rows": (raw_png(height=100), "must be 105 x 105 pixels, got 105 x 100"),
    "nothing": (b"", "."),
    "the signature": (b"\x89PNG\r\n\x1a\n", "."),
    "half": (raw_png()[:40], "."),
    "60 rows": (raw_png(rows=60), "it must have 105 rows"),
    "106 rows": (raw_png(rows=106), "it must have 105 rows"),
    "16 bits": (raw_png(depth=16), "it must have 8 bits a channel or fewer"),
    "grey and alpha": (raw_png(depth=8, colour=4), "transparent"),
    "alpha": (raw_png(depth=8, colour=6), "transparent"),
    "one transparent grey": (raw_png(extra=part(b"tRNS", b"\0\1")), "transparent"),
    "interlaced": (raw_png(interlaced=1), "interlaced"),
    "no palette": (raw_png(colour=3), "palette"),
    "3 bits": (raw_png(depth=3), "."),
    "two headers": (raw_png(extra=part(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0))), "one image from IHDR to IEND"),
    "no end": (raw_png()[:-12], "one image from IHDR to IEND"),
    "more after the end": (raw_png() + b"more", "."),
    "a changed byte": (raw_png()[:-13] + b"x" + raw_png()[-12:], "the checksum of its part b'IDAT' is wrong"),
    "a GIF": (b"GIF89a" + bytes(100), "it does not begin as a PNG does"),
    "text": (b"/etc/passwd", "it does not begin as a PNG does"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", DRAWINGS)
def test_a_drawing_that_is_no_png_of_black_on_white_is_named(tmp_path: Path, wrong: str) -> None:
    content, said = DRAWINGS[wrong]
    write(tmp_path, "small", MEMBERS | {NAME: content})
    found = refusal(tmp_path)
    assert NAME in found and re.search(said, found), found


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "JPEG", "PPM", "ICO"])
def test_only_png_is_decoded(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image"
    Image.fromarray(np.full((105, 105), 255, np.uint8)).save(image, format=kind)
    write(tmp_path, "small", MEMBERS | {NAME: image.read_bytes()})
    assert "it does not begin as a PNG does" in refusal(tmp_path)


def test_a_cut_drawing_is_refused_where_pillow_loads_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    write(tmp_path, "small", MEMBERS | {NAME: drawing(0, 4)[:-40]})
    assert "it ends early" in refusal(tmp_path)


def test_other_kinds_of_png_are_read(tmp_path: Path) -> None:
    paper = np.ones((105, 105), dtype=bool)
    paper[:15, 60:75] = False
    grey = Image.fromarray(paper).convert("L")
    write(tmp_path, "small", MEMBERS)
    expected = Omniglot(tmp_path, "small").images
    for mode in ("1", "L", "P", "RGB"):
        image = tmp_path / "image.png"
        grey.convert(mode).save(image)
        write(tmp_path, "small", MEMBERS | {NAME: image.read_bytes()})
        assert Omniglot(tmp_path, "small").images.equal(expected), mode


def test_a_link_is_refused(tmp_path: Path) -> None:
    fewer = {name: data for name, data in MEMBERS.items() if name != NAME}
    link = zipfile.ZipInfo(NAME)
    link.create_system, link.external_attr = 3, 0o120777 << 16
    for target in (b"0000_04.png", drawing(0, 4)):
        write(tmp_path, "small", fewer, (link, target))
        assert refusal(tmp_path).endswith("it is a link")


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "small", MEMBERS)
    patched(path, *FLAGS, lambda _: b"\0\x08")
    path.write_bytes(path.read_bytes().replace(NAME.encode(), UTF8))
    assert refusal(tmp_path).startswith(f"Omniglot: the archive must be a sound zip file, got {path}: ")


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "small", MEMBERS)
    path.write_bytes(path.read_bytes().replace(NAME.encode(), b"\0" + NAME[1:].encode()))
    assert refusal(tmp_path).endswith("a member without a name")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\5\6" + bytes(18), b"PK\3\4", b"\x1f\x8b" + bytes(40)])
def test_what_is_no_archive_of_drawings_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "small.zip").write_bytes(content)
    refusal(tmp_path)


def test_what_is_no_file_is_a_missing_archive(tmp_path: Path) -> None:
    (tmp_path / "small.zip").mkdir()
    for root in (tmp_path, tmp_path / "missing", tmp_path / "small.zip", tmp_path / ("x" * 300)):
        with pytest.raises(FileNotFoundError, match="Omniglot: root must hold the archive, got no file "):
            Omniglot(root, "small")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, "small", MEMBERS).chmod(0)
    refusal(tmp_path)


def test_what_an_archive_must_hold(tmp_path: Path) -> None:
    path = write(tmp_path, "small", characters("other", {"Runes": 1}))
    assert refusal(tmp_path) == (
        f"Omniglot: the archive must hold small/<alphabet>/<character>/<drawing>.png, got none in {path}"
    )
    members = characters("small", {"Latin": 1, "Runes": 1})
    write(tmp_path, "small", members)
    for alphabets, said in (
        (["Latin", "Elvish"], f"alphabets must be among ['Latin', 'Runes'] of {path}, got 'Elvish'"),
        ([], f"alphabets must name at least one of ['Latin', 'Runes'] of {path}, got none"),
    ):
        assert refusal(tmp_path, alphabets=alphabets) == f"Omniglot: {said}"
    del members[NAME]
    write(tmp_path, "small", members)
    assert refusal(tmp_path) == f"Omniglot: Runes/character01 of {path} must have 20 drawings, got 19"
    assert Omniglot(tmp_path, "small", alphabets=["Latin"]).images.shape[0] == 1
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(tmp_path).startswith(f"Omniglot: the archive must be a sound zip file, got {path}: ")


@pytest.mark.parametrize("name", TARGETS)
def test_any_damage_is_refused_or_does_not_matter(tmp_path: Path, name: str) -> None:
    attack = TARGETS[name](tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [attack(random.Random(seed)) for seed in range(100)]
    assert found.count("refused") > 80


def test_an_index_that_swallows_a_character_is_refused(tmp_path: Path) -> None:
    """A member's comment that is said to be longer hides the members after it: here all of one character."""
    path = write(tmp_path, "small", characters("small", {"Runes": 2}))
    content = bytearray(path.read_bytes())
    entries, place = [], content.find(b"PK\1\2")
    while place >= 0:
        entries.append(place)
        place = content.find(b"PK\1\2", place + 4)
    first, last = entries[19], content.rfind(b"PK\5\6")  # 20 of the second character come first
    comment = last - entries[20]
    content[first + 32 : first + 34] = struct.pack("<H", comment)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="the archive must be a sound zip file, got .*: it states 40 members, and lists 20"
    ):
        Omniglot(tmp_path, "small")
