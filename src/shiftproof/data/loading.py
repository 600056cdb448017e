"""From pixels to model inputs: images are resized, cropped, normalised and stacked into batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from shiftproof.errors import require_at_least, require_between, require_choice

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_RESIZE_MODES = ("shortest", "squash", "longest")


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that a model expects of its images; it belongs to the weights and is stored with them.

    With the ``resize_mode`` "shortest", the shorter side is scaled to ``size`` pixels and the centre is cropped;
    "squash" ignores the aspect ratio; "longest" scales the longer side and pads with ``fill`` (0 to 255). Resizing is
    antialiased; ``mean`` and ``std`` are in units of [0, 1] pixels. A ``crop_share`` below 1 scales to
    floor(size / crop_share) instead, so that the central crop covers that share of the side (timm's crop_pct).
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


def resize(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resizes (H, W, 3) uint8 pixels to (size, size, 3), as the model's evaluation transform does."""
    size, mode = math.floor(preprocessing.size / preprocessing.crop_share), preprocessing.resize_mode
    height, width = pixels.shape[:2]
    if height == width == size == preprocessing.size:
        return pixels
    if mode == "squash":
        new_height = new_width = size
    elif mode == "shortest":
        # torchvision truncates the long side; doing the same reproduces its crops pixel by pixel.
        side = min(height, width)
        new_height, new_width = int(size * height / side), int(size * width / side)
    else:
        # open_clip rounds both sides.
        ratio = max(height / size, width / size)
        new_height, new_width = round(height / ratio), round(width / ratio)
    image = Image.fromarray(pixels).resize(
        (max(new_width, 1), max(new_height, 1)), _FILTERS[preprocessing.interpolation]
    )
    return _centred(np.asarray(image), preprocessing.size, preprocessing.fill)


def resize_mask(mask: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resizes an (H, W) uint8 mask to (size, size), aligned with what ``resize`` makes of the image.

    Padding counts as background.

    >>> resize_mask(np.full((2, 4), 255, np.uint8), Preprocessing(size=4, resize_mode="longest", fill=255)).tolist()
    [[0, 0, 0, 0], [255, 255, 255, 255], [255, 255, 255, 255], [0, 0, 0, 0]]
    """
    # The mask is repeated into three channels, so that it goes through the same code as the image.
    return resize(np.repeat(mask[:, :, None], 3, axis=2), replace(preprocessing, fill=0))[:, :, 0].copy()


def _centred(pixels: NDArray[np.uint8], size: int, fill: int) -> NDArray[np.uint8]:
    """Pads the sides that are too short, then crops around the centre to (size, size, 3)."""
    height, width = pixels.shape[:2]
    if height < size or width < size:
        top, left = max(size - height, 0) // 2, max(size - width, 0) // 2
        canvas = np.full((max(height, size), max(width, size), 3), fill, dtype=np.uint8)
        canvas[top : top + height, left : left + width] = pixels
        pixels, (height, width) = canvas, canvas.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size].copy()  # a view would keep the whole array in memory


def random_resized_crop(
    pixels: NDArray[np.uint8], preprocessing: Preprocessing, scale: tuple[float, float], generator: Generator
) -> NDArray[np.uint8]:
    """A random crop of (H, W, 3) uint8 pixels, resized to (size, size, 3).

    The crop covers a share of the area drawn from ``scale``, two fractions in (0, 1], at an aspect ratio of 3:4 to 4:3.
    """
    return resized_crop(pixels, preprocessing, scale, crop_draws(1, generator)[0])


def crop_draws(count: int, generator: Generator) -> list[list[float]]:
    """Four uniform draws in [0, 1) for each of ``count`` crops.

    All are drawn at once, so that those of one crop do not depend on which other crops are made.
    """
    drawn: list[list[float]] = torch.rand(count, 4, generator=generator, dtype=torch.float64).tolist()
    return drawn


def resized_crop(
    pixels: NDArray[np.uint8], preprocessing: Preprocessing, scale: tuple[float, float], draws: Sequence[float]
) -> NDArray[np.uint8]:
    """The (size, size, 3) crop that four draws in [0, 1) describe: its area, aspect ratio, left and top."""
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
    """Stacks B images of (H, W, 3) uint8 pixels into a (B, 3, H, W) float32 tensor in [0, 1]."""
    stacked = np.ascontiguousarray(np.stack(list(pixels)) if not isinstance(pixels, np.ndarray) else pixels)
    return torch.tensor(stacked).permute(0, 3, 1, 2).contiguous().float().div_(255)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turns (B, 3, H, W) images in [0, 1] into the model's input: subtracts the mean and divides by the deviation."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(3, 1, 1)
    return (images - mean) / std
