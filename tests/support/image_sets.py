"""Comparisons of image sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import shiftproof as sp


def pixels_of(images: sp.ImageSet) -> list[NDArray[np.uint8]]:
    return [images.read(i) for i in range(len(images))]


def same_pixels(first: sp.ImageSet, second: sp.ImageSet) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(pixels_of(first), pixels_of(second), strict=True))
