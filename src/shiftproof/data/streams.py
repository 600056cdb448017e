"""Batches of model inputs from any number of pictures, of which only a few are in memory; broken ones are noted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shiftproof.data.batches import ahead
from shiftproof.data.decoding import decode
from shiftproof.data.formats.entries import NamedPicture
from shiftproof.data.loading import Preprocessing, model_inputs, resize
from shiftproof.errors import InputError


@dataclass(frozen=True)
class PictureBatch:
    """Some pictures in their order: the names of all, and the (B, 3, size, size) inputs of those that were decoded.

    ``errors`` says, by the position of a name, why the picture could not be decoded.
    """

    samples: tuple[str, ...]
    inputs: Tensor
    errors: Mapping[int, str]


def picture_batches(
    pictures: Iterable[NamedPicture], preprocessing: Preprocessing, batch_size: int
) -> Iterator[PictureBatch]:
    """Yields the pictures in batches, in their order; the last may be smaller.

    A few batches are decoded ahead, and no more are held in memory. A picture that cannot be decoded stops nothing.
    """

    def make(chunk: tuple[NamedPicture, ...]) -> tuple[tuple[str, ...], NDArray[np.uint8], dict[int, str]]:
        pixels = [np.empty((0, preprocessing.size, preprocessing.size, 3), dtype=np.uint8)]
        errors = {}
        for position, (_, picture) in enumerate(chunk):
            try:
                pixels.append(resize(decode(picture), preprocessing)[None])
            except (InputError, OSError) as error:
                errors[position] = " ".join(str(error).split())
        return tuple(sample for sample, _ in chunk), np.concatenate(pixels), errors

    for samples, pixels, errors in ahead(make, _chunks(pictures, batch_size)):
        yield PictureBatch(samples, model_inputs(pixels, preprocessing), errors)


def _chunks(pictures: Iterable[NamedPicture], size: int) -> Iterator[tuple[NamedPicture, ...]]:
    iterator = iter(pictures)
    while chunk := tuple(itertools.islice(iterator, size)):
        yield chunk
