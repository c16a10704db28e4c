"""fastmeta.data.image_folder: which files it reads, in which order, and what their pixels become."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmeta.data import ImageFolder, sample_episodes
from harness.image_folders import Image, noise, put, read_fixture, refusal, root_fixture  # noqa: F401
from harness.places import ROOT

pytestmark = pytest.mark.cpu


def test_classes_and_files_come_in_the_order_of_their_names(read: Callable[..., ImageFolder]) -> None:
    found = read()
    assert found.classes == ["ant", "cat", "dog"] and found.counts == [2, 3, 4]
    expected = [
        noise(10 * ord(name) + number) for name, count in (("a", 2), ("c", 3), ("d", 4)) for number in range(count)
    ]
    assert found.images.dtype == torch.uint8 and found.images.shape == (9, 3, 12, 12)
    assert found.images.equal(torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))


def test_classes_may_be_chosen(read: Callable[..., ImageFolder], tmp_path: Path) -> None:
    every, chosen = read(), read(classes=["dog", "ant"])
    assert chosen.classes == ["dog", "ant"] and chosen.counts == [4, 2]
    assert chosen.images.equal(torch.cat([every.images[5:], every.images[:2]]))
    file = tmp_path / "classes.txt"
    file.write_text("dog\n\n ant \n")
    assert read(classes=file).images.equal(chosen.images)
    for wrong, said in (
        (["eel"], "classes must be folders of .*, got 'eel'"),
        (["../root/cat"], "classes must be folders of"),
        (["."], "classes must be folders of"),
        ([], "classes must name at least one, each once, got 0"),
        (["cat", "cat"], "classes must name at least one, each once, got 2 with 1 different"),
    ):
        assert re.search(said, refusal(read, classes=wrong))
    file.write_bytes(b"\xff\xfe")
    assert "classes must be a text file" in refusal(read, classes=file)


def test_split_gives_views(read: Callable[..., ImageFolder]) -> None:
    whole = read()
    first, others = whole.split(2)
    assert (first.classes, first.counts, others.classes, others.counts) == (["ant", "cat"], [2, 3], ["dog"], [4])
    assert torch.cat([first.images, others.images]).equal(whole.images)
    assert others.images.untyped_storage().data_ptr() == whole.images.untyped_storage().data_ptr()
    for wrong in (0, 3, -1, 10**30):
        with pytest.raises(ValueError, match=r"^ImageFolder\.split: classes must be at (least|most)"):
            whole.split(wrong)
    assert whole.to("meta").images.device.type == "meta" and whole.to("meta").counts == whole.counts


def test_the_middle_square_is_scaled(root: Path, read: Callable[..., ImageFolder]) -> None:
    """Of an image three times as wide as high the middle third of its width, of one as high that of its height."""
    wide = noise(5, 20, 60)
    put(root / "ant" / "0.png", wide)
    put(root / "ant" / "1.png", wide.swapaxes(0, 1))
    for size in (1, 7, 20, 33):
        found = read(size, classes=["ant"])
        assert found.images.shape == (2, 3, size, size)
        scaled = np.asarray(Image.fromarray(wide).resize((3 * size, size), Image.Resampling.BILINEAR)).astype(int)
        middle = torch.from_numpy(scaled[:, size : 2 * size]).permute(2, 0, 1)
        assert (found.images[0] - middle).abs().max() <= 1
        assert (found.images[1] - middle.mT).abs().max() <= 1


def test_scaling_is_antialiased(root: Path, read: Callable[..., ImageFolder]) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    put(root / "ant" / "0.png", stripes)
    assert (read(8, classes=["ant"]).images[0].int() - 127).abs().max() < 12


KINDS: dict[str, tuple[Callable[[], Image.Image], str, list[int]]] = {  # by kind: the image, the format, its RGB
    "grey": (lambda: Image.new("L", (9, 9), 77), "png", [77, 77, 77]),
    "grey JPEG": (lambda: Image.new("L", (9, 9), 77), "jpg", [77, 77, 77]),
    "one bit": (lambda: Image.new("1", (9, 9), 1), "png", [255, 255, 255]),
    "palette": (lambda: Image.new("RGB", (9, 9), (10, 20, 30)).quantize(4), "gif", [10, 20, 30]),
    "transparent": (lambda: Image.new("RGBA", (9, 9), (10, 20, 30, 0)), "png", [255, 255, 255]),
    "half transparent": (lambda: Image.new("RGBA", (9, 9), (0, 0, 0, 51)), "webp", [204, 204, 204]),
    "grey and transparent": (lambda: Image.new("LA", (9, 9), (5, 255)), "png", [5, 5, 5]),
    "bitmap": (lambda: Image.new("RGB", (9, 9), (10, 20, 30)), "BMP", [10, 20, 30]),
    "tiff": (lambda: Image.new("RGB", (9, 9), (10, 20, 30)), "TiFF", [10, 20, 30]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_rgb_or_grey(root: Path, read: Callable[..., ImageFolder], kind: str) -> None:
    make, suffix, expected = KINDS[kind]
    (root / "eel").mkdir()
    make().save(root / "eel" / f"0.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    rgb, grey = (read(6, channels=channels, classes=["eel"]).images for channels in (3, 1))
    assert rgb.shape == (1, 3, 6, 6) and grey.shape == (1, 1, 6, 6)
    assert rgb[0, :, 3, 3].tolist() == expected and rgb.equal(rgb[..., 3:4, 3:4].expand_as(rgb))
    assert abs(int(grey[0, 0, 3, 3]) - np.dot(expected, [0.299, 0.587, 0.114])) <= 1


def test_transparency_of_a_palette(root: Path, read: Callable[..., ImageFolder]) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, 4:] = 1
    image = Image.frombytes("P", (8, 8), pixels.tobytes())
    image.putpalette([9, 9, 9, 70, 70, 70])
    (root / "eel").mkdir()
    image.save(root / "eel" / "0.png", transparency=0)
    found = read(8, classes=["eel"]).images
    assert found[0, :, 0, 0].tolist() == [255] * 3 and found[0, :, 0, 7].tolist() == [70] * 3


def test_a_photograph_is_turned_upright(root: Path, read: Callable[..., ImageFolder]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    put(root / "eel" / "0.jpg", pixels, exif=exif, quality=100)
    found = read(16, classes=["eel"]).images[0, 0]
    assert found[:, 12:].min() > 200 and found[:, :4].max() < 50


def test_an_animation_gives_its_first_frame(root: Path, read: Callable[..., ImageFolder]) -> None:
    first, second = (Image.new("L", (8, 8), grey) for grey in (40, 200))
    (root / "eel").mkdir()
    first.save(root / "eel" / "0.gif", save_all=True, append_images=[second])
    assert read(8, classes=["eel"]).images.unique().tolist() == [40]


def test_episodes_of_unequal_classes(read: Callable[..., ImageFolder]) -> None:
    found = read()
    drawn = sample_episodes(found.images, 20, 3, 1, 1, counts=found.counts, generator=torch.Generator().manual_seed(0))
    owner = {tuple(x.flatten().tolist()): n for x, n in zip(found.images, [0, 0, 1, 1, 1, 2, 2, 2, 2], strict=True)}
    for support, query in zip(drawn.support_x, drawn.query_x, strict=True):
        classes = [
            [owner[tuple((x * 255).round().byte().flatten().tolist())] for x in side] for side in (support, query)
        ]
        assert classes[0] == classes[1] and sorted(classes[0]) == [0, 1, 2]


def test_the_lines_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(160):
        put(tmp_path / "flowers" / f"{number % 10}" / f"{number}.png", noise(number))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "data.md").read_text(), re.S | re.M)
    for long, short in (("split(80)", "split(5)"), ("steps=1000", "steps=2"), ("episodes=600", "episodes=4")):
        assert long in block
        block = block.replace(long, short)
    exec(compile(block, "docs/data.md", "exec"), {})
