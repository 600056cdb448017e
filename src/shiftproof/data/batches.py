"""Batches of model inputs from an image set; a few threads decode images ahead of the model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.data.augmentations import augmentation
from shiftproof.data.loading import (
    Preprocessing,
    crop_draws,
    empty_inputs,
    model_inputs,
    resize,
    resize_mask,
    resized_crop,
)
from shiftproof.data.reading import PictureReader
from shiftproof.data.sets import ImageSet, require_masks, require_set
from shiftproof.seeding import child_generator

Job = TypeVar("Job")
Result = TypeVar("Result")
_AHEAD = 2
_PIECE = 32  # images that a thread decodes at a time for evaluation
_MEMORY_LIMIT = 4 << 30


def evaluation_batches(images: ImageSet, preprocessing: Preprocessing, batch_size: int) -> Iterator[Tensor]:
    """Yields (B, 3, size, size) normalised inputs of all images in order; the last batch may be smaller."""
    require_set(images)

    def make(positions: range) -> NDArray[np.uint8]:
        # Each image is copied before the next one is read, which then takes the same memory.
        pixels = np.empty((len(positions), preprocessing.size, preprocessing.size, 3), np.uint8)
        for row, i in zip(pixels, positions, strict=True):
            row[...] = read_resized(images, i, preprocessing)
        return pixels

    # Threads decode pieces of batches, so that all of them work on the first batch, however large it is.
    batches = [_pieces(range(len(images))[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    decoded = _results(images, make, (piece for batch in batches for piece in batch), in_batch=len(batches[0]))
    for batch in batches:
        inputs = empty_inputs(sum(map(len, batch)), preprocessing.size, preprocessing.size)
        for part in torch.split(inputs, _PIECE):
            model_inputs(next(decoded), preprocessing, out=part)
        yield inputs
    warn_of_conversions(images)


def _pieces(positions: range) -> list[range]:
    return [positions[start : start + _PIECE] for start in range(0, len(positions), _PIECE)]


def training_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    batches: Iterable[Sequence[int]],
    crop_scale: tuple[float, float],
    *,
    seed: int,
    first: int = 0,
    share: slice = slice(None),
    augment: Sequence[Any] = (),
) -> Iterator[Tensor]:
    """Yields (B, 3, size, size) randomly cropped, normalised inputs for each batch of positions.

    ``crop_scale`` bounds the share of an image's area that a crop covers, two fractions in (0, 1]; ``first`` is the
    number of the first batch. ``augment`` are augmentations of the crops (``data.augmentations``). The random numbers
    depend on the seed, the batch's number and the place in it, but neither on the threads nor on which ``share`` of
    every batch is yielded.
    """
    require_set(images)
    change = augmentation(augment, preprocessing)

    def sample(number: int, place: int, i: int, draws: Sequence[float]) -> NDArray[np.uint8]:
        crop = resized_crop(images.read(i), preprocessing, crop_scale, draws)
        return crop if change is None else change(crop, child_generator(seed, "augment", number, place))

    def make(job: tuple[int, Sequence[int]]) -> NDArray[np.uint8]:
        number, positions = job
        draws = crop_draws(len(positions), child_generator(seed, "crops", number))
        selected = list(enumerate(zip(positions, draws, strict=True)))[share]
        return np.stack([sample(number, place, i, four) for place, (i, four) in selected])

    for pixels in _results(images, make, enumerate(batches, first)):
        yield model_inputs(pixels, preprocessing)
    warn_of_conversions(images)


def decoded_once(images: ImageSet, preprocessing: Preprocessing, limit: int = _MEMORY_LIMIT) -> ImageSet:
    """The set with its resized pixels in memory, for several passes; the same set if they exceed ``limit`` bytes.

    Models receive exactly the same inputs either way, since resized images are rounded to bytes in both cases.
    Masks are resized like the pixels, each when it is read.
    """
    require_set(images)
    if len(images) * 3 * preprocessing.size**2 > limit:
        return images

    def make(i: int) -> NDArray[np.uint8]:
        return read_resized(images, i, preprocessing)

    def mask(i: int) -> NDArray[np.uint8]:
        return read_resized_mask(images, i, preprocessing)

    pixels = list(ahead(make, range(len(images))))
    warn_of_conversions(images)
    return replace(
        images,
        read=lambda i: pixels[i],
        in_memory=True,
        mask=mask if images.mask else None,
        resized_for=preprocessing,
    )


def read_resized(images: ImageSet, i: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The (size, size, 3) uint8 pixels of the i-th image after the model's evaluation transform.

    Of picture files, they may come from the cache of ``ImageSet.read_with``.
    """
    # A transform that crops the centre must not run twice: it would crop the centre of the centre.
    if images.resized_for == preprocessing:
        return images.read(i)
    wanted = _uncropped(images, preprocessing)
    if isinstance(images.read, PictureReader):
        return images.read.resized(i, wanted)
    return resize(images.read(i), wanted)


def read_resized_mask(images: ImageSet, i: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The (size, size) uint8 object mask of the i-th image, aligned with the pixels of ``read_resized``.

    Raises an InputError if the set has no masks.
    """
    cover = require_masks(images)(i)
    return cover if images.resized_for == preprocessing else resize_mask(cover, _uncropped(images, preprocessing))


def _uncropped(images: ImageSet, preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing of a set whose pictures have already been cropped: it only scales them."""
    return replace(preprocessing, crop_share=1.0) if images.precropped else preprocessing


def warn_of_conversions(images: ImageSet) -> None:
    """Warns of the pictures of a set that were converted when they were read, once for each kind of conversion."""
    for conversions in images.conversions:
        conversions.warn()


def _results(
    images: ImageSet, make: Callable[[Job], Result], jobs: Iterable[Job], *, in_batch: int = 1
) -> Iterator[Result]:
    # While a model uses every core, threads cost more than they save on images that are already in memory.
    return map(make, jobs) if images.in_memory else ahead(make, jobs, in_batch=in_batch)


def ahead(make: Callable[[Job], Result], jobs: Iterable[Job], *, in_batch: int = 1) -> Iterator[Result]:
    """Yields the jobs' results in order while threads work a few batches of ``in_batch`` jobs ahead.

    Results are bytes, to save memory.
    """
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                pending.append(pool.submit(make, job))
                if len(pending) >= (workers + _AHEAD) * in_batch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
