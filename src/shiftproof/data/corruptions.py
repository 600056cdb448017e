"""Synthetic shifts: five corruptions at five severities, after ImageNet-C (Hendrycks & Dietterich 2019).

The paper is https://arxiv.org/abs/1903.12261.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Generator

from shiftproof.errors import InputError, require_choice

SEVERITIES = (1, 2, 3, 4, 5)
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_BLUR = (1 / 224, 2 / 224, 3 / 224, 4 / 224, 6 / 224)
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_PIXELATION = (0.6, 0.5, 0.4, 0.3, 0.25)
_JPEG = (25, 18, 15, 10, 7)


def corrupt(pixels: NDArray[np.uint8], name: str, severity: int, generator: Generator) -> NDArray[np.uint8]:
    """A corrupted copy of (H, W, 3) uint8 pixels, after ImageNet-C (arXiv 1903.12261).

    ``name`` is "noise", "blur", "contrast", "pixelation" or "jpeg". ``severity`` is 1 to 5, with the paper's constants;
    the width of the blur is scaled from 224 pixels to the image's shorter side. Only "noise" draws from the generator.
    Raises an InputError for another name or severity.

    >>> grey = np.full((8, 8, 3), 100, dtype=np.uint8)
    >>> corrupt(grey, "contrast", 3, Generator()).tolist() == grey.tolist()
    True
    """
    require_choice("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity!r} is not one of 1, 2, 3, 4, 5.")
    return CORRUPTIONS[name](pixels, severity - 1, generator)


def _noise(pixels: NDArray[np.uint8], level: int, generator: Generator) -> NDArray[np.uint8]:
    noise = torch.randn(pixels.shape, generator=generator).numpy()
    return _to_bytes(pixels / 255 + _NOISE[level] * noise)


def _blur(pixels: NDArray[np.uint8], level: int, _: Generator) -> NDArray[np.uint8]:
    radius = _BLUR[level] * min(pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _contrast(pixels: NDArray[np.uint8], level: int, _: Generator) -> NDArray[np.uint8]:
    unit = pixels / 255
    mean = unit.mean((0, 1), keepdims=True)
    return _to_bytes((unit - mean) * _CONTRAST[level] + mean)


def _pixelation(pixels: NDArray[np.uint8], level: int, _: Generator) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    small = (max(int(width * _PIXELATION[level]), 1), max(int(height * _PIXELATION[level]), 1))
    image = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def _jpeg(pixels: NDArray[np.uint8], level: int, _: Generator) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG[level])
    return np.asarray(Image.open(file).convert("RGB"))


def _to_bytes(unit: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(unit.clip(0, 1) * 255).astype(np.uint8)  # type: ignore[no-any-return]


CORRUPTIONS: dict[str, Callable[[NDArray[np.uint8], int, Generator], NDArray[np.uint8]]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "pixelation": _pixelation,
    "jpeg": _jpeg,
}
