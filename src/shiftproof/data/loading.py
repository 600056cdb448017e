"""From stored images to model inputs: decode, resize, crop, normalise, in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from shiftproof.errors import InputError, require_at_least, require_between, require_choice

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_OBJECT = 128  # from here on a mask's pixel is more object than background
_RESIZE_MODES = ("shortest", "squash", "longest")


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images: it belongs to the weights and is stored with them.

    ``resize_mode``: "shortest" scales the shorter side to ``size`` and crops the centre, "squash" ignores
    the aspect, "longest" scales the longer side and pads with ``fill`` (0 to 255). Resizing is
    antialiased; ``mean`` and ``std`` are in units of [0, 1] pixels. ``crop_share`` below 1 scales to
    floor(size / crop_share) instead, so that the centre of that share is kept (timm's crop_pct).
    """

    size: int = 224
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0
    crop_share: float = 1.0

    def __post_init__(self) -> None:
        require_at_least("preprocessing.size", self.size, 1)
        require_choice("preprocessing.interpolation", self.interpolation, _FILTERS)
        require_choice("preprocessing.resize_mode", self.resize_mode, _RESIZE_MODES)
        require_between("preprocessing.crop_share", self.crop_share, 0.1, 2)  # timm has a few above 1: they pad


def decode(path: str | Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB pixels of an image file; an error names the file."""
    return _decoded(path, "image", "RGB")


def decode_mask(path: str | Path) -> NDArray[np.uint8]:
    """(H, W) coverage of the object, 0 to 255, from a grey image file whose white is object; an error names the file.

    A mask without a bright pixel is refused: most of them hold class numbers or 0 and 1.
    """
    mask = _decoded(path, "mask", "L")
    if (brightest := int(mask.max())) < _OBJECT:
        raise InputError(
            f"the brightest pixel of the mask {path} is {brightest}; an object must be white, 255, on black, 0. "
            "Multiply a mask of 0 and 1 by 255; take an image without an object out."
        )
    return mask


def _decoded(path: str | Path, what: str, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except FileNotFoundError as error:
        raise InputError(f"the {what} {path} does not exist. Check the path.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"the {what} {path} does not decode ({error}). Mend it or take it out.") from error


def resize(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """(H, W, 3) to (size, size, 3), as the model's evaluation transform does it."""
    size, mode = math.floor(preprocessing.size / preprocessing.crop_share), preprocessing.resize_mode
    height, width = pixels.shape[:2]
    if height == width == size == preprocessing.size:
        return pixels
    if mode == "squash":
        new_height = new_width = size
    elif mode == "shortest":
        # torchvision's rule: the long side is truncated, so that its crops are met pixel by pixel.
        side = min(height, width)
        new_height, new_width = int(size * height / side), int(size * width / side)
    else:
        # open_clip's rule: both sides are rounded.
        ratio = max(height / size, width / size)
        new_height, new_width = round(height / ratio), round(width / ratio)
    image = Image.fromarray(pixels).resize(
        (max(new_width, 1), max(new_height, 1)), _FILTERS[preprocessing.interpolation]
    )
    return _centred(np.asarray(image), preprocessing.size, preprocessing.fill)


def resize_mask(mask: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """(H, W) to (size, size), pixel by pixel where ``resize`` puts the image; what is padded is background.

    >>> resize_mask(np.full((2, 4), 255, np.uint8), Preprocessing(size=4, resize_mode="longest", fill=255)).tolist()
    [[0, 0, 0, 0], [255, 255, 255, 255], [255, 255, 255, 255], [0, 0, 0, 0]]
    """
    # Three equal channels go through the very code that the pixels go through.
    return resize(np.repeat(mask[:, :, None], 3, axis=2), replace(preprocessing, fill=0))[:, :, 0].copy()


def _centred(pixels: NDArray[np.uint8], size: int, fill: int) -> NDArray[np.uint8]:
    """Pads, then crops around the centre to (size, size, 3), each side as it needs."""
    height, width = pixels.shape[:2]
    if height < size or width < size:
        top, left = max(size - height, 0) // 2, max(size - width, 0) // 2
        canvas = np.full((max(height, size), max(width, size), 3), fill, dtype=np.uint8)
        canvas[top : top + height, left : left + width] = pixels
        pixels, (height, width) = canvas, canvas.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size].copy()  # not a view that keeps the whole alive


def random_resized_crop(
    pixels: NDArray[np.uint8], preprocessing: Preprocessing, scale: tuple[float, float], generator: Generator
) -> NDArray[np.uint8]:
    """A crop of a random share of the area (aspect 3:4 to 4:3), resized to (size, size, 3)."""
    return resized_crop(pixels, preprocessing, scale, crop_draws(1, generator)[0])


def crop_draws(count: int, generator: Generator) -> list[list[float]]:
    """Four uniform draws for each of ``count`` crops: those of one crop do not depend on which others are cut."""
    drawn: list[list[float]] = torch.rand(count, 4, generator=generator, dtype=torch.float64).tolist()
    return drawn


def resized_crop(
    pixels: NDArray[np.uint8], preprocessing: Preprocessing, scale: tuple[float, float], draws: Sequence[float]
) -> NDArray[np.uint8]:
    """The crop that four draws in [0, 1) stand for: area, aspect, left, top."""
    height, width = pixels.shape[:2]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    aspect = math.exp(math.log(4 / 3) * (2 * draws[1] - 1))
    crop_width = min(max(round(math.sqrt(area * aspect)), 1), width)
    crop_height = min(max(round(math.sqrt(area / aspect)), 1), height)
    left, top = round(draws[2] * (width - crop_width)), round(draws[3] * (height - crop_height))
    box = (left, top, left + crop_width, top + crop_height)
    size = (preprocessing.size, preprocessing.size)
    image = Image.fromarray(pixels).resize(size, _FILTERS[preprocessing.interpolation], box)
    return np.asarray(image)


def to_unit_range(pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
    """B images of (H, W, 3) bytes to a (B, 3, H, W) float tensor in [0, 1]."""
    stacked = np.ascontiguousarray(np.stack(list(pixels)) if not isinstance(pixels, np.ndarray) else pixels)
    return torch.tensor(stacked).permute(0, 3, 1, 2).contiguous().float().div_(255)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) in [0, 1] to the model's input: minus mean, over standard deviation."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(3, 1, 1)
    return (images - mean) / std
