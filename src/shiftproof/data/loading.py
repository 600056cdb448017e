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
_IN_CACHE = 4  # images of which floats are made at a time
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
    height, width = pixels.shape[:2]
    if height == width == preprocessing.size and scaled_size(height, width, preprocessing) == (height, width):
        return pixels
    return resize_image(Image.fromarray(pixels), preprocessing)


def resize_image(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """What ``resize`` makes of an RGB image's pixels, without a copy of them at their full size."""
    height, width = scaled_size(image.height, image.width, preprocessing)
    scaled = image.resize((width, height), _FILTERS[preprocessing.interpolation])
    return _centred(np.asarray(scaled), preprocessing.size, preprocessing.fill)


def scaled_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """The height and width to which a picture is scaled, before its centre is cropped or its sides are padded.

    >>> scaled_size(300, 400, Preprocessing(size=224)), scaled_size(300, 400, Preprocessing(resize_mode="longest"))
    ((224, 298), (168, 224))
    """
    size = math.floor(preprocessing.size / preprocessing.crop_share)
    if preprocessing.resize_mode == "squash":
        return size, size
    if preprocessing.resize_mode == "shortest":
        # torchvision truncates the long side; doing the same reproduces its crops pixel by pixel.
        side = min(height, width)
        return max(int(size * height / side), 1), max(int(size * width / side), 1)
    # open_clip rounds both sides.
    ratio = max(height / size, width / size)
    return max(round(height / ratio), 1), max(round(width / ratio), 1)


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


def model_inputs(pixels: NDArray[np.uint8], preprocessing: Preprocessing, out: Tensor | None = None) -> Tensor:
    """Turns (B, H, W, 3) uint8 pixels into the model's (B, 3, H, W) float32 input, in ``out`` if it is given.

    The result is that of ``normalise(to_unit_range(pixels), preprocessing)``, to the bit, but only a few images at a
    time are worked on, so that they stay in the processor's cache.

    >>> pixels = np.full((1, 2, 2, 3), 255, np.uint8)
    >>> model_inputs(pixels, Preprocessing(size=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))).unique()
    tensor([1.])
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    inputs = empty_inputs(len(pixels), *pixels.shape[1:3]) if out is None else out
    for some, target in zip(torch.split(planes, _IN_CACHE), torch.split(inputs, _IN_CACHE), strict=True):
        target.copy_(some).div_(255).sub_(mean).div_(std)
    return inputs


def empty_inputs(count: int, height: int, width: int) -> Tensor:
    """A (count, 3, height, width) float32 tensor of any values, for inputs that are yet to be made.

    numpy asks for its memory in huge pages, and torch does not: to clear many small ones would take longer than to make
    the floats.
    """
    return torch.from_numpy(np.empty((count, 3, height, width), dtype=np.float32))


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turns (B, 3, H, W) images in [0, 1] into the model's input: subtracts the mean and divides by the deviation."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(3, 1, 1)
    return (images - mean) / std
