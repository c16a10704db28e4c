"""Printed letters of many scripts: rendered once from matplotlib's fonts, look-alikes dropped."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

LIGHT = (
    *("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic"),
)
BOLD = ("DejaVuSans-Bold", "DejaVuSerif-Bold")
# Ranges and single letters; of a range, the letters that do not decompose (no accents) and that DejaVuSans has.
# Left out by eye, as near Latin: Old Italic, U+07D3 (F), U+07D5 (b), U+10E7 (y).
SCRIPTS = {
    "train": {
        "Latin": "A-Z a-z",
        "Greek": "\u0391-\u03a9 \u03b1-\u03c9",
        "Cyrillic": "\u0410-\u044f",
        "Arabic": "\u0621-\u064a",
        "Lao": "\u0e81-\u0ec6",
        "Tifinagh": "\u2d30-\u2d65",
        "Canadian Aboriginal": "ᐁ ᐃ ᐅ ᐊ ᐯ ᐱ ᐳ ᐸ ᑌ ᑎ ᑐ ᑕ ᑫ ᑭ ᑯ ᑲ ᒉ ᒋ ᒍ ᒐ ᒣ ᒥ ᒧ ᒪ "  # noqa: RUF001
        "ᓀ ᓂ ᓄ ᓇ ᓓ ᓕ ᓗ ᓚ ᓭ ᓯ ᓱ ᓴ ᔐ ᔑ ᔓ ᔕ ᔦ ᔨ ᔪ ᔭ ᕂ ᕆ ᕈ ᕋ ᕓ ᕕ ᕗ ᕙ ᕞ ᕠ ᕤ ᕦ ᖠ ᖢ ᖤ",
    },
    "test": {
        "Hebrew": "\u05d0-\u05ea",
        "NKo": "\u07ca-\u07d2 \u07d4 \u07d6-\u07e7",
        "Georgian": "\u10d0-\u10e6 \u10e8-\u10f6 \u10a0-\u10c5",
        "Armenian": "\u0531-\u0556 \u0561-\u0586",
    },
}
SIDE, _POINTS = 80, 128  # pixels: the longer side of every letter, the size that it is rendered at before
_STRAY = 0.1  # a share of the ink, see _distinct


class Letter(NamedTuple):
    split: str
    script: str
    character: str


def version() -> str:
    """matplotlib's version, and with it the fonts'."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Glyphs: matplotlib must be installed (pip install fastmeta[data]), got none") from error
    return matplotlib.__version__


def masters() -> tuple[list[Letter], Tensor, Tensor]:
    """The distinct letters, their renderings [G, SIDE, SIDE], uint8, and of each letter the first row in them [L + 1].

    A letter has one rendering for each face that has it.
    """
    light, bold = ([_load(face) for face in faces] for faces in (LIGHT, BOLD))
    letters = list(_letters(light[0]))
    drawn = [_draw(light, letter) for letter in letters]
    kept = _distinct(drawn)
    complete = [drawn[i] + _draw(bold, letters[i]) for i in kept]
    images, first = _stack(complete)
    return [letters[i] for i in kept], images, first


def _load(face: str) -> FT2Font:
    import matplotlib
    from matplotlib.ft2font import FT2Font

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    if not path.is_file():
        raise FileNotFoundError(f"Glyphs: matplotlib must carry the font, got no file {path}")
    font = FT2Font(str(path))
    font.set_size(_POINTS, 72)
    return font


def _letters(font: FT2Font) -> Iterator[Letter]:
    for split, scripts in SCRIPTS.items():
        for script, spans in scripts.items():
            for span in spans.split():
                for code in range(ord(span[0]), ord(span[-1]) + 1):
                    letter = unicodedata.category(chr(code)) in ("Lu", "Ll", "Lo")
                    plain = len(unicodedata.normalize("NFKD", chr(code))) == 1
                    if letter and plain and font.get_char_index(code):
                        yield Letter(split, script, chr(code))


def _draw(fonts: list[FT2Font], letter: Letter) -> list[np.ndarray]:
    return [_render(font, letter.character) for font in fonts if font.get_char_index(ord(letter.character))]


def _stack(drawn: list[list[np.ndarray]]) -> tuple[Tensor, Tensor]:
    """All renderings [G, SIDE, SIDE] and of each letter the first row in them [L + 1]."""
    first = np.cumsum([0, *map(len, drawn)])
    return torch.from_numpy(np.stack([image for faces in drawn for image in faces])), torch.from_numpy(first)


def _render(font: FT2Font, character: str) -> np.ndarray:
    """[SIDE, SIDE], uint8, ink 255 on 0: the letter's box scaled until its longer side fills the square, centred."""
    from matplotlib.ft2font import LoadFlags
    from PIL import Image

    font.set_text(character, 0.0, flags=LoadFlags.NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = Image.fromarray(np.array(font.get_image()))
    ink = ink.crop(ink.getbbox())
    scale = SIDE / max(ink.size)
    width, height = (max(1, round(scale * side)) for side in ink.size)
    ink = ink.resize((width, height), Image.Resampling.BILINEAR)
    sheet = Image.new("L", (SIDE, SIDE))
    sheet.paste(ink, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(sheet)


def _distinct(drawn: list[list[np.ndarray]]) -> list[int]:
    """The letters that look like none before them, kept or not, in any two faces.

    Two renderings look alike where less than _STRAY of the ink of either has no ink of the other near it: both are
    halved in size and made black and white, and near is the pixel or one of its 8 neighbours. Pixel counts are whole
    numbers below 2**24, exact in float32: every machine keeps the same letters.
    """
    images, first = _stack(drawn)
    ink = (F.avg_pool2d(images[:, None].float(), 2) > 127).float()
    near = F.max_pool2d(ink, 3, stride=1, padding=1)
    met = ink.flatten(1) @ near.flatten(1).T
    stray = 1 - met / ink.sum((1, 2, 3))[:, None]
    stray = torch.maximum(stray, stray.T)
    starts = first[:-1].numpy()
    apart = np.minimum.reduceat(np.minimum.reduceat(stray.numpy(), starts, axis=0), starts, axis=1)  # [L, L]
    return [letter for letter, row in enumerate(apart) if row[:letter].min(initial=1.0) >= _STRAY]
