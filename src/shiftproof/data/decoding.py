"""From picture files to pixels, by one rule that training, evaluation, prediction, maps, thumbnails and masks share.

``docs/inputs.md`` lists the rule for every kind of picture.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from shiftproof import progress
from shiftproof.data.loading import Preprocessing, resize_image, scaled_size
from shiftproof.data.sources import Source, StoredPicture
from shiftproof.errors import InputError, counted

UPRIGHT = "turned upright by their EXIF orientation"
SIXTEEN_BITS = "reduced from 16 to 8 bits"
DARK = "reduced from 16 to 8 bits although their values are below 4096, which makes them almost black"
TRANSPARENT = "with transparency, placed on white"
CMYK = "converted from CMYK without a colour profile"
FIRST_FRAME = "reduced to the first of several frames"
DRAFTED = "decoded at a fraction of their size, as jpeg_draft asks"
KINDS = (UPRIGHT, SIXTEEN_BITS, DARK, TRANSPARENT, CMYK, FIRST_FRAME, DRAFTED)  # caches number them in this order

_OBJECT = 128  # a mask's pixel of at least this value is more object than background
_DARK = 4096  # the values of a 12-bit scan, stored in 16 bits, are below this one
_ANIMATED = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")  # a further frame of a JPEG (MPO) is its preview or depth map
_WHITE, _BLACK = (255, 255, 255, 255), (0, 0, 0, 255)
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262  # a value of TIFF and the number of its tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """The (H, W, 3) uint8 RGB pixels of a picture file, and what was converted to get them, in words."""

    pixels: NDArray[np.uint8]
    conversions: tuple[str, ...] = ()


class Conversions:
    """Counts how many pictures of a set were converted, each once however often it is read; threads may share it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._conversions: dict[int, tuple[str, ...]] = {}  # by the position of the picture
        self._reported: set[str] = set()
        self._lock = threading.Lock()

    def note(self, i: int, conversions: tuple[str, ...]) -> None:
        """Notes what was converted to read the i-th picture, in place of what was noted when it was last read."""
        with self._lock:
            self._conversions[i] = conversions

    def counts(self) -> dict[str, int]:
        """How many of the pictures that were read had to be converted, by the conversion."""
        with self._lock:
            return dict(sorted(Counter(kind for kinds in self._conversions.values() for kind in kinds).items()))

    def found(self) -> dict[int, tuple[str, ...]]:
        """The conversions of the pictures that had any, by the position of the picture."""
        with self._lock:
            return {i: kinds for i, kinds in self._conversions.items() if kinds}

    def warn(self) -> None:
        """Warns of the conversions, unless there are none or all kinds of them have been reported.

        Other pictures of the set that are converted in the same way are not worth another warning.
        """
        counts = self.counts()
        if counts.keys() <= self._reported:
            return
        self._reported |= counts.keys()
        with self._lock:
            converted, read = sum(map(bool, self._conversions.values())), len(self._conversions)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        warnings.warn(
            f"{self.name}: {converted:,} of {counted(read, 'picture')} read had to be converted: {kinds}. "
            "docs/inputs.md explains the rules.",
            stacklevel=2,
        )


def decode(source: str | Source) -> NDArray[np.uint8]:
    """The (H, W, 3) uint8 RGB pixels of an image file; errors are those of ``read_picture``."""
    return read_picture(source).pixels


def read_picture(source: str | Source) -> Picture:
    """Decodes an image file, or a picture inside a larger file, to 8-bit RGB, turned as its EXIF orientation says.

    Of 16 bits the upper 8 are taken, transparency is placed on white, and the first frame of an animation is used.
    Colour profiles are not applied. Raises an InputError that names the file if it does not exist, cannot be decoded,
    or has floating-point or 32-bit values, whose range no file states.
    """
    image, conversions = _decoded(source, "image", _WHITE)
    return Picture(np.asarray(image), conversions)


def read_resized_picture(source: str | Source, preprocessing: Preprocessing, *, jpeg_draft: bool = False) -> Picture:
    """Decodes an image file by the rule of ``read_picture`` and resizes it to (size, size, 3).

    With ``jpeg_draft``, a JPEG that is at least twice as large as it is scaled to is decoded at a half, a quarter or an
    eighth of its size, though never smaller than that. This is faster, and changes the pixels a little.
    """
    image, conversions = _decoded(source, "image", _WHITE, preprocessing if jpeg_draft else None)
    return Picture(resize_image(image, preprocessing), conversions)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """The (H, W, 3) uint8 RGB pixels of an image that Pillow has opened, by the rule of ``read_picture``.

    Raises an InputError for anything else than a Pillow image, and for floating-point or 32-bit values.

    >>> pixels_of(Image.new("L", (4, 2), 7)).shape
    (2, 4, 3)
    """
    if not isinstance(image, Image.Image):
        raise InputError(f"`image` is of the type {type(image).__name__}; it must be a Pillow image (PIL.Image.Image).")
    return np.asarray(_in_upright_rgb(image, "the image", _WHITE)[0])


def decode_mask(path: str | Path) -> NDArray[np.uint8]:
    """The (H, W) uint8 coverage of the object, 0 to 255, from a grey image file in which the object is white.

    The rule is that of ``read_picture``, but transparency counts as background. Raises an InputError that names the
    file if it does not exist, if it cannot be decoded, or if no pixel is bright: most such masks contain class numbers,
    or zeros and ones.
    """
    image, _ = _decoded(path, "mask", _BLACK)
    mask = np.asarray(image.convert("L"))
    if (brightest := int(mask.max())) < _OBJECT:
        raise InputError(
            f"the brightest pixel of the mask {path} is {brightest}; an object must be white, 255, on black, 0. "
            "Multiply a mask of 0 and 1 by 255; leave out an image that shows no object."
        )
    return mask


def _decoded(
    source: str | Source, what: str, ground: tuple[int, ...], draft_for: Preprocessing | None = None
) -> tuple[Image.Image, tuple[str, ...]]:
    """An image file in RGB, with transparency placed on a ground, and the conversions that this took."""
    try:
        file = io.BytesIO(source.read()) if isinstance(source, StoredPicture) else source
        with progress.reading(str(source)), Image.open(file) as image:
            drafted = draft_for is not None and _draft(image, draft_for)
            upright, kinds = _in_upright_rgb(image, f"the {what} {source}", ground)
            return upright, (*kinds, *([DRAFTED] if drafted else []))
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own message names the buffer that a stored picture is read into
        raise InputError(f"the {what} {source} cannot be decoded: it is no picture. Fix or remove it.") from error
    except FileNotFoundError as error:
        raise InputError(f"the {what} {source} does not exist. Check the path.") from error
    except Exception as error:  # Pillow's decoders raise almost anything, such as IndexError, for damaged files
        raise InputError(f"the {what} {source} cannot be decoded ({error}). Fix or remove it.") from error


def _draft(image: Image.Image, preprocessing: Preprocessing) -> bool:
    """Has a JPEG decoded at a fraction of its size that is no smaller than it is scaled to; whether there is one."""
    whole = image.size
    height, width = scaled_size(image.height, image.width, preprocessing)
    image.draft(None, (width, height))
    return image.size != whole


def _in_upright_rgb(image: Image.Image, what: str, ground: tuple[int, ...]) -> tuple[Image.Image, tuple[str, ...]]:
    """An image in RGB, turned as its orientation says, with transparency placed on a ground, and the conversions."""
    frames = image.format in _ANIMATED and getattr(image, "is_animated", False)
    stored = _orientation(image)
    image.load()
    # Pillow turns a TIFF itself while it loads it, and then removes the orientation.
    remaining = _orientation(image)
    colour, kinds = _in_rgb(image, what, ground)
    turned = colour.transpose(_TURNS[remaining]) if remaining in _TURNS else colour
    return turned, (*([FIRST_FRAME] if frames else []), *([UPRIGHT] if stored in _TURNS else []), *kinds)


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1


def _in_rgb(image: Image.Image, what: str, ground: tuple[int, ...]) -> tuple[Image.Image, list[str]]:
    kinds = []
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image, kind = _in_eight_bits(image)
        kinds.append(kind)
    if image.mode in ("I", "F"):
        values = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise InputError(
            f"{what} has {values} values, whose range the file does not state. Scale it to 8 or 16 bits, that is to 0 "
            "to 255 or 65535, and save it again."
        )
    if image.has_transparency_data:
        layer = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            kinds.append(TRANSPARENT)
            background = Image.new("RGBA", layer.size, ground)
            background.alpha_composite(layer)
            layer = background
        return layer.convert("RGB"), kinds
    if image.mode == "CMYK":
        kinds.append(CMYK)
    return image.convert("RGB"), kinds


def _in_eight_bits(image: Image.Image) -> tuple[Image.Image, str]:
    """The upper 8 of a grey image's 16 bits, as Pillow takes them of 16-bit colours, and the kind of conversion."""
    values = np.asarray(image).astype(np.uint16)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = np.uint16(65535) - values
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey, DARK if 0 < int(values.max()) < _DARK else SIXTEEN_BITS
