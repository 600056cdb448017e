"""Batches of model inputs from an image set, decoded by a few threads ahead of the model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.data.loading import (
    Preprocessing,
    crop_draws,
    normalise,
    resize,
    resize_mask,
    resized_crop,
    to_unit_range,
)
from shiftproof.data.sets import ImageSet, require_masks
from shiftproof.seeding import child_generator

Job = TypeVar("Job")
Made = TypeVar("Made")
_AHEAD = 2
_MEMORY_LIMIT = 4 << 30


def evaluation_batches(images: ImageSet, preprocessing: Preprocessing, batch_size: int) -> Iterator[Tensor]:
    """(B, 3, size, size) inputs of all images in order; the last batch may be smaller."""

    def make(positions: range) -> NDArray[np.uint8]:
        return np.stack([read_resized(images, i, preprocessing) for i in positions])

    starts = range(0, len(images), batch_size)
    for pixels in _made(images, make, [range(start, min(start + batch_size, len(images))) for start in starts]):
        yield normalise(to_unit_range(pixels), preprocessing)


def training_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    batches: Iterable[Sequence[int]],
    crop_scale: tuple[float, float],
    *,
    seed: int,
    first: int = 0,
    share: slice = slice(None),
) -> Iterator[Tensor]:
    """(B, 3, size, size) randomly cropped inputs for each batch of positions, of which ``first`` is the first's number.

    The crops depend on the seed, the batch's number and the place in it, not on the threads, nor on which ``share`` of
    every batch is made.
    """

    def make(job: tuple[int, Sequence[int]]) -> NDArray[np.uint8]:
        number, positions = job
        draws = crop_draws(len(positions), child_generator(seed, "crops", number))
        chosen = list(zip(positions, draws, strict=True))[share]
        return np.stack([resized_crop(images.read(i), preprocessing, crop_scale, four) for i, four in chosen])

    for pixels in _made(images, make, enumerate(batches, first)):
        yield normalise(to_unit_range(pixels), preprocessing)


def decoded_once(images: ImageSet, preprocessing: Preprocessing, limit: int = _MEMORY_LIMIT) -> ImageSet:
    """The set with its resized pixels in memory, for several passes; as it was where they exceed ``limit`` bytes.

    Models see exactly what they would see otherwise, since resized images are rounded to bytes either way.
    Masks are resized as the pixels are, each when it is read.
    """
    if len(images) * 3 * preprocessing.size**2 > limit:
        return images

    def make(i: int) -> NDArray[np.uint8]:
        return read_resized(images, i, preprocessing)

    def mask(i: int) -> NDArray[np.uint8]:
        return read_resized_mask(images, i, preprocessing)

    pixels = list(_ahead(make, range(len(images))))
    return replace(
        images,
        read=lambda i: pixels[i],
        in_memory=True,
        mask=mask if images.mask else None,
        resized_for=preprocessing,
    )


def read_resized(images: ImageSet, i: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The i-th image, (size, size, 3), as the model's evaluation transform makes it."""
    pixels = images.read(i)
    # A transform that keeps the centre of an image would keep the centre's centre.
    return pixels if images.resized_for == preprocessing else resize(pixels, preprocessing)


def read_resized_mask(images: ImageSet, i: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The i-th image's object mask, (size, size), where ``read_resized`` puts the object."""
    cover = require_masks(images)(i)
    return cover if images.resized_for == preprocessing else resize_mask(cover, preprocessing)


def _made(images: ImageSet, make: Callable[[Job], Made], jobs: Iterable[Job]) -> Iterator[Made]:
    # Beside a model that uses every core, threads cost more than stacking bytes that are in memory already.
    return map(make, jobs) if images.in_memory else _ahead(make, jobs)


def _ahead(make: Callable[[Job], Made], jobs: Iterable[Job]) -> Iterator[Made]:
    """Makes the jobs' results in order, a few ahead of the one who takes them: bytes, so that they stay small."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Made]] = deque()
        try:
            for job in jobs:
                pending.append(pool.submit(make, job))
                if len(pending) >= workers + _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
