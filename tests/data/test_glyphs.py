# ruff: noqa: RUF001
from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from fastmeta.data import Glyphs, _fonts, sample_episodes

pytestmark = pytest.mark.cpu

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")

# Written alike in every alphabet that has them.
HOMOGLYPHS = [
    *("AΑА", "BΒВ", "CСᑕ", "EΕЕⴹ", "HΗНᕼ", "IΙІlاוןߊⵏⵊ", "JЈյ", "KΚКκ", "MΜМ", "NΝ", "OΟОՕoοоօסⵔߋ", "PΡРᑭpρр"),
    *("SЅՏ", "TΤТ", "UՍᑌ", "XΧХⵝ", "YΥ", "ZΖ", "aа", "eе", "gց", "hһհ", "nոռ", "qգզ", "uսυ", "yуУ", "ΓГᒥ", "Δᐃⵠߡ"),
    *("ΛᐱⴷA", "ΠП", "ΦФՓ", "VᐯⴸVv", "LᒪԼ", "Σⵉ", "Иⵍи", "dժ", "bЬ", "ЧႷ", "QႭႳ", "GႺ", "ηղդ", "φჶ"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def train(cache: Path) -> Glyphs:
    return Glyphs("train", cache=cache)


@pytest.fixture(scope="module")
def test(cache: Path, train: Glyphs) -> Glyphs:
    return Glyphs("test", cache=cache)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short alphabets and two faces, built in milliseconds."""
    monkeypatch.setattr(_fonts, "SCRIPTS", {"train": {"Latin": "A-F"}, "test": {"Hebrew": "\u05d0-\u05d3"}})
    monkeypatch.setattr(_fonts, "LIGHT", ("DejaVuSans",))
    monkeypatch.setattr(_fonts, "BOLD", ("DejaVuSans-Bold",))


def both(train: Glyphs, test: Glyphs) -> list[str]:
    return [character for _, character in train.characters + test.characters]


def test_there_are_enough_classes_with_ink_255_on_0(train: Glyphs, test: Glyphs) -> None:
    for data, least in ((train, 150), (test, 60)):
        classes = len(data.characters)
        assert classes >= least
        assert data.images.shape == (classes, 20, 1, 28, 28)
        assert data.images.dtype == torch.uint8
        assert int(data.images.flatten(2).amax(-1).min()) > 120  # no empty page
        coverage = data.images.float().mean((1, 2, 3, 4)) / 255
        assert float(coverage.min()) > 0.02 and float(coverage.max()) < 0.35
    drawn = sample_episodes(test.images, 4, 5, 1, 5)
    assert float(drawn.support_x.min()) == 0.0 and 0.9 < float(drawn.support_x.max()) <= 1.0


def test_no_script_and_no_character_is_in_both_splits(train: Glyphs, test: Glyphs) -> None:
    assert not {script for script, _ in train.characters} & {script for script, _ in test.characters}
    characters = both(train, test)
    assert len(set(characters)) == len(characters)
    codes = FT2Font(str(FONT)).get_charmap()
    assert all(len(character) == 1 and ord(character) in codes for character in characters)  # no missing-glyph box


def test_letters_are_centred_whole_and_vary(train: Glyphs, test: Glyphs) -> None:
    for data in (train, test):
        images = data.images[:, :, 0].double()
        ink = images.sum((-2, -1))
        place = torch.arange(28, dtype=torch.float64) - 13.5
        for axis in (-1, -2):
            centre = (images.sum(axis) * place).sum(-1) / ink
            assert float(centre.mean().abs()) < 1
            assert float(centre.abs().max()) < 7
        edge = images[..., [0, -1], :].sum((-2, -1)) + images[..., [0, -1]].sum((-2, -1))
        assert float((edge / ink).max()) < 0.06  # next to no ink is cut off
        differing = (data.images[:, :-1] != data.images[:, 1:]).flatten(2).any(-1)
        assert bool(differing.all())


@pytest.mark.parametrize("alike", HOMOGLYPHS)
def test_known_homoglyphs_are_one_class_at_most(alike: str, train: Glyphs, test: Glyphs) -> None:
    assert sum(character in alike for character in both(train, test)) <= 1


def test_no_two_classes_look_the_same_to_another_renderer(train: Glyphs, test: Glyphs) -> None:
    font = ImageFont.truetype(str(FONT), 96)

    def page(character: str) -> np.ndarray:
        sheet = Image.new("L", (256, 256))
        ImageDraw.Draw(sheet).text((64, 64), character, fill=255, font=font)
        ink = sheet.crop(sheet.getbbox())
        ink.thumbnail((30, 30))
        ink = ink.resize([max(1, round(30 * side / max(ink.size))) for side in ink.size])
        page = Image.new("L", (32, 32))
        page.paste(ink, ((32 - ink.width) // 2, (32 - ink.height) // 2))
        return np.asarray(page, dtype=np.float64).ravel()

    characters = both(train, test)
    pages = np.stack([page(character) for character in characters])
    pages -= pages.mean(axis=1, keepdims=True)
    pages /= np.linalg.norm(pages, axis=1, keepdims=True)
    likeness = pages @ pages.T - 2 * np.eye(len(pages))
    first, second = np.unravel_index(likeness.argmax(), likeness.shape)
    assert likeness.max() < 0.95, f"{characters[first]} and {characters[second]}"
    assert page("A") @ page("Α") == page("A") @ page("A")  # the measure sees a homoglyph


def test_a_letter_is_nearer_to_its_own_examples(test: Glyphs) -> None:
    drawn = sample_episodes(test.images, 200, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    means = drawn.support_x.view(200, 5, 5, -1).mean(2)
    nearest = torch.cdist(drawn.query_x.flatten(2), means).argmin(-1)
    assert float((nearest == drawn.query_y).float().mean()) > 0.8  # pixels alone: far above the 0.2 of chance


def test_every_build_gives_the_same_bits_on_any_number_of_threads(train: Glyphs, test: Glyphs, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        Glyphs("train", cache=tmp_path)
    finally:
        torch.set_num_threads(threads)
    for split, data in (("train", train), ("test", test)):
        again = Glyphs(split, cache=tmp_path)
        assert torch.equal(again.images, data.images)
        assert again.characters == data.characters


@pytest.mark.usefixtures("few")
def test_size_examples_and_seed_make_other_images(tmp_path: Path) -> None:
    base = Glyphs("train", examples=5, cache=tmp_path)
    assert base.characters == [("Latin", letter) for letter in "ABCDEF"]
    assert Glyphs("test", cache=tmp_path).images.shape == (4, 20, 1, 28, 28)
    for size in (1, 20, 84, 105):
        assert Glyphs("train", size=size, examples=2, cache=tmp_path).images.shape == (6, 2, 1, size, size)
    other = Glyphs("train", examples=5, seed=1, cache=tmp_path)
    assert not torch.equal(base.images, other.images)
    assert torch.equal(base.images, Glyphs("train", examples=5, cache=tmp_path).images)


@pytest.mark.usefixtures("few")
def test_torch_defaults_change_nothing(tmp_path: Path) -> None:
    plain = Glyphs("train", cache=tmp_path / "plain")
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        other = Glyphs("train", cache=tmp_path / "other")
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device if device.type != "cpu" else None)
    assert torch.equal(plain.images, other.images)


@pytest.mark.usefixtures("few")
def test_a_missing_font_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fonts, "BOLD", ("NoSuchFace",))
    with pytest.raises(FileNotFoundError) as raised:
        Glyphs("train", cache=tmp_path)
    assert (
        str(raised.value) == f"Glyphs: matplotlib must carry the font, got no file {FONT.with_name('NoSuchFace.ttf')}"
    )


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError) as raised:
        Glyphs("train", cache=tmp_path)
    assert str(raised.value) == "Glyphs: matplotlib must be installed (pip install fastmeta[data]), got none"
