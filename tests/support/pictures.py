"""Pictures of every kind that people have, with the pixels that they must be read as.

The table in ``docs/inputs.md`` is generated from these cases by ``tools/inputs.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shiftproof.data import decoding
from shiftproof.data.pictures import picture_suffixes

WHITE, RED = (255, 255, 255), (200, 30, 40)
GREY = np.array([[0, 51], [128, 255], [77, 9]], dtype=np.uint8)  # not square, so that a turn shows
COLOURS = np.array([[[200, 30, 40], [0, 0, 0]], [[255, 255, 255], [1, 2, 3]], [[9, 90, 200], [50, 60, 70]]], np.uint8)
ORIENTATION = 0x0112


@dataclass(frozen=True)
class PictureCase:
    """One kind of picture: the row of the documentation, how to write it, and what it is read as.

    ``write`` returns the (H, W, 3) pixels that the file must be read as, or None if it is refused; ``conversions`` are
    what is counted, and ``tolerance`` is the largest difference that a lossy format may make.
    """

    name: str
    suffix: str
    read_as: str
    write: Callable[[Path], NDArray[np.uint8] | None]
    conversions: tuple[str, ...] = ()
    tolerance: int = 0


def in_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def over(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8], ground: int = 255) -> NDArray[np.uint8]:
    """Composes (H, W, 3) pixels over a ground, by the formula: alpha * pixel + (1 - alpha) * ground."""
    share = alpha[:, :, None] / 255
    return (share * pixels + (1 - share) * ground).round().astype(np.uint8)


ALPHA = np.array([[255, 0], [128, 255], [3, 200]], dtype=np.uint8)


def _plain(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(COLOURS).save(path)
    return COLOURS


def _grey(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(GREY).save(path)
    return in_rgb(GREY)


def _one_bit(path: Path) -> NDArray[np.uint8]:
    bits = GREY > 100
    Image.fromarray(bits).save(path)
    return in_rgb(np.where(bits, 255, 0).astype(np.uint8))


def _sixteen_bits(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)  # 65535 is white
    return in_rgb(GREY)


def _big_endian(path: Path) -> NDArray[np.uint8]:
    values = GREY.astype(np.uint16) * 256 + 129
    Image.frombytes("I;16B", (2, 3), values.astype(">u2").tobytes()).save(path)
    return in_rgb(GREY)


def _twelve_bits(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(GREY.astype(np.uint16) * 16).save(path)
    return in_rgb(GREY // 16)


def _sixteen_bits_pgm(path: Path) -> NDArray[np.uint8]:
    path.write_bytes(b"P5 2 3 65535\n" + (GREY.astype(np.uint16) * 257).astype(">u2").tobytes())
    return in_rgb(GREY)


def _floats(path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32) / 255).save(path)


def _integers(path: Path) -> None:
    Image.fromarray(GREY.astype(np.int32)).save(path)


def _transparent(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(np.dstack([COLOURS, ALPHA])).save(path)
    return over(COLOURS, ALPHA)


def _opaque(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(np.dstack([COLOURS, np.full((3, 2), 255, np.uint8)])).save(path)
    return COLOURS


def _transparent_grey(path: Path) -> NDArray[np.uint8]:
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]).save(path)
    return over(in_rgb(GREY), ALPHA)


def _transparent_colour(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(COLOURS).save(path, transparency=(0, 0, 0))
    return np.where((COLOURS == 0).all(axis=2, keepdims=True), np.uint8(255), COLOURS)


def _transparent_sixteen_bits(path: Path) -> NDArray[np.uint8]:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path, transparency=0)
    return in_rgb(np.where(GREY == 0, 255, GREY).astype(np.uint8))


def _palette(path: Path) -> NDArray[np.uint8]:
    image = Image.new("P", (2, 3))
    image.putpalette(COLOURS.reshape(-1).tolist())
    image.putdata(range(6))
    image.save(path)
    return COLOURS


def _transparent_palette(path: Path) -> NDArray[np.uint8]:
    image = Image.new("P", (2, 3), 0)
    image.putpalette([*RED, 0, 0, 255, 0, 0, 0])
    image.putpixel((0, 0), 1)
    image.putpixel((1, 2), 2)
    image.save(path, transparency=bytes([255, 128, 0]))
    colours, alpha = np.full((3, 2, 3), RED, np.uint8), np.full((3, 2), 255, np.uint8)
    colours[0, 0], alpha[0, 0] = (0, 0, 255), 128
    alpha[2, 1] = 0
    return over(colours, alpha)


def _cmyk(path: Path) -> NDArray[np.uint8]:
    image = Image.fromarray(np.full((16, 8, 3), RED, np.uint8)).convert("CMYK")
    image.save(path)
    return np.full((16, 8, 3), RED, np.uint8)


def _animation(path: Path) -> NDArray[np.uint8]:
    first, second = Image.new("RGB", (2, 3), RED), Image.new("RGB", (2, 3), "blue")
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=[second], **lossless)
    return np.full((3, 2, 3), RED, np.uint8)


def _jpeg_2000(path: Path) -> NDArray[np.uint8]:
    pixels = np.full((16, 8, 3), RED, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def _jpeg(path: Path) -> NDArray[np.uint8]:
    pixels = np.full((16, 8, 3), RED, np.uint8)
    Image.fromarray(pixels).save(path, "JPEG" if path.suffix in (".jfif", ".jpe") else None, quality=100)
    return pixels


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The pixels as a viewer shows them: EXIF says on which side of the scene row 0 and column 0 are."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels[:, ::-1].swapaxes(0, 1),
    }[orientation]


def write_oriented(path: Path, orientation: int, pixels: NDArray[np.uint8] = COLOURS) -> NDArray[np.uint8]:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return turned(pixels, orientation)


def _oriented(path: Path) -> NDArray[np.uint8]:
    return write_oriented(path, 6)


def _oriented_jpeg(path: Path) -> NDArray[np.uint8]:
    """Two halves of a grey JPEG, whose blocks of 8 x 8 pixels are flat and so come back almost as they were."""
    pixels = np.repeat(np.array([[40] * 8, [200] * 8], np.uint8), 8, axis=0)
    return write_oriented(path, 6, in_rgb(pixels))


PICTURES = (
    PictureCase("8-bit colour", ".png", "as it is", _plain),
    PictureCase("8-bit grey", ".png", "three equal channels", _grey),
    PictureCase("1 bit per pixel", ".png", "black 0, white 255", _one_bit),
    PictureCase("colour palette", ".png", "the colours of the palette", _palette),
    PictureCase("16-bit grey", ".png", "the upper 8 bits", _sixteen_bits, (decoding.SIXTEEN_BITS,)),
    PictureCase("16-bit grey, big endian", ".tif", "the upper 8 bits", _big_endian, (decoding.SIXTEEN_BITS,)),
    PictureCase("16-bit grey", ".pgm", "the upper 8 bits", _sixteen_bits_pgm, (decoding.SIXTEEN_BITS,)),
    PictureCase(
        "12-bit grey in 16 bits", ".png", "the upper 8 bits, which is almost black", _twelve_bits, (decoding.DARK,)
    ),
    PictureCase("floating-point values", ".tif", "refused: the file does not state their range", _floats),
    PictureCase("32-bit or signed integers", ".tif", "refused: the file does not state their range", _integers),
    PictureCase("EXIF orientation", ".jpg", "turned as a viewer shows it", _oriented_jpeg, (decoding.UPRIGHT,), 2),
    PictureCase("EXIF orientation", ".png", "turned as a viewer shows it", _oriented, (decoding.UPRIGHT,)),
    PictureCase("EXIF orientation", ".tif", "turned as a viewer shows it", _oriented, (decoding.UPRIGHT,)),
    PictureCase("transparency", ".png", "placed on white", _transparent, (decoding.TRANSPARENT,), 1),
    PictureCase("transparency in grey", ".png", "placed on white", _transparent_grey, (decoding.TRANSPARENT,), 1),
    PictureCase("one transparent colour", ".png", "placed on white", _transparent_colour, (decoding.TRANSPARENT,)),
    PictureCase(
        "one transparent 16-bit value",
        ".png",
        "placed on white",
        _transparent_sixteen_bits,
        (decoding.SIXTEEN_BITS, decoding.TRANSPARENT),
    ),
    PictureCase(
        "transparency in a palette", ".png", "placed on white", _transparent_palette, (decoding.TRANSPARENT,), 1
    ),
    PictureCase("an alpha channel without transparency", ".png", "as it is", _opaque),
    PictureCase("CMYK", ".tif", "converted without a colour profile", _cmyk, (decoding.CMYK,), 2),
    PictureCase("animation", ".gif", "the first frame", _animation, (decoding.FIRST_FRAME,)),
    PictureCase("animation", ".webp", "the first frame", _animation, (decoding.FIRST_FRAME,)),
    PictureCase("several pages", ".tif", "the first page", _animation, (decoding.FIRST_FRAME,)),
    PictureCase("JPEG", ".jfif", "as it is", _jpeg, (), 4),
    PictureCase("JPEG", ".jpe", "as it is", _jpeg, (), 4),
    PictureCase("JPEG 2000", ".jp2", "as it is", _jpeg_2000, (), 2),
    PictureCase("AVIF", ".avif", "as it is", _jpeg, (), 6),
)
# Those whose format the installed Pillow decodes; older ones lack AVIF.
DECODED_HERE = tuple(case for case in PICTURES if case.suffix in picture_suffixes())
