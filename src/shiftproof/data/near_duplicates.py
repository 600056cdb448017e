"""Pictures of two sets that look the same although their files differ: scaled, recompressed or converted copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shiftproof import progress
from shiftproof.data.sets import ImageSet
from shiftproof.data.sources import Source, open_source, size_of
from shiftproof.errors import InputError

_COARSE, _FINE = 16, 64  # pixels on a side of the thumbnails that are compared first, and of those that decide
_LIKE, _SAME = 0.97, 0.98  # correlations of two thumbnails: to be compared closely, and to show the same picture
_FLAT = 2.0  # grey levels of standard deviation; a thumbnail with less has no content that could be compared
_BLOCK = 2048
_THREADS = 4


@dataclass(frozen=True)
class Thumbnails:
    """The (N, 256) grey thumbnails of those pictures of a set that were decoded, at their (N,) ``positions`` in it.

    Each has a mean of 0 and a length of 1, so that a product of two is their correlation; one without content is 0.
    ``failures`` are the messages about the pictures that cannot be decoded.
    """

    positions: NDArray[np.int64]
    vectors: NDArray[np.float16]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Lookalikes:
    """How many pictures of ``second`` look like one of ``first`` in another file, and the ids of one such pair.

    ``compared`` pictures of ``second`` were compared.
    """

    first: str
    second: str
    count: int
    compared: int
    example: tuple[str, str]


def read_thumbnails(images: ImageSet, positions: Sequence[int]) -> Thumbnails:
    """Decodes the pictures of a set at some positions; of each, half a kilobyte stays in memory."""
    decoded: list[int] = []
    vectors: list[NDArray[np.float16]] = []
    failures: list[str] = []
    for position, outcome in _outcomes(images, positions):
        if isinstance(outcome, str):
            failures.append(outcome)
        else:
            decoded.append(position)
            vectors.append(outcome)
    stacked = np.stack(vectors) if vectors else np.zeros((0, _COARSE**2), dtype=np.float16)
    return Thumbnails(np.array(decoded, dtype=np.int64), stacked, tuple(failures))


def find_lookalikes(
    sets: Mapping[str, ImageSet], thumbnails: Mapping[str, Thumbnails], pairs: Sequence[tuple[str, str]]
) -> tuple[Lookalikes, ...]:
    """Finds pictures that look the same in both sets of some pairs, given by name; identical files do not count.

    Each picture of the second set is compared with the one of the first whose thumbnail of 16 x 16 pixels correlates
    most with its own. They look the same if their thumbnails of 64 x 64 pixels in colour correlate by 0.98 too.
    """
    alike = []
    for first, second in pairs:
        known, others = thumbnails[first], thumbnails[second]
        examples = [
            (sets[first].ids[i], sets[second].ids[j])
            for i, j in _candidates(known, others)
            if not _same_file(sets[first], i, sets[second], j)
            and _look_alike(sets[first].read(i), sets[second].read(j))
        ]
        if examples:
            alike.append(Lookalikes(first, second, len(examples), len(others.positions), examples[0]))
    return tuple(alike)


def _outcomes(images: ImageSet, positions: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float16] | str]]:
    """Each position with its thumbnail, or with the message about a picture that cannot be decoded."""

    def outcome(position: int) -> NDArray[np.float16] | str:
        try:
            return _correlated(images.read(position), _COARSE, "L").astype(np.float16)
        except InputError as error:
            return str(error)

    done = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for some in _in_blocks(positions):
            yield from zip(some, pool.map(outcome, some), strict=True)
            done += len(some)
            progress.report(f"decode {images.name}", done, len(positions))


def _in_blocks(positions: Sequence[int]) -> Iterator[Sequence[int]]:
    return (positions[start : start + _BLOCK] for start in range(0, len(positions), _BLOCK))


def _correlated(pixels: NDArray[np.uint8], side: int, mode: str) -> NDArray[np.float32]:
    """A thumbnail as a vector with a mean of 0 and a length of 1, or 0 where it has no content."""
    small = Image.fromarray(pixels).convert(mode).resize((side, side), Image.Resampling.BOX)
    vector = np.asarray(small, dtype=np.float32).ravel()
    vector = vector - vector.mean()
    return np.zeros_like(vector) if vector.std() < _FLAT else vector / np.linalg.norm(vector)


def _candidates(known: Thumbnails, others: Thumbnails) -> Iterator[tuple[int, int]]:
    """The positions of each picture among the others that correlates enough, after that of the nearest known one."""
    if not len(known.positions):
        return
    for row in range(0, len(others.positions), _BLOCK):
        vectors = others.vectors[row : row + _BLOCK].astype(np.float32)
        best, nearest = np.full(len(vectors), -1, dtype=np.float32), np.zeros(len(vectors), dtype=np.int64)
        for column in range(0, len(known.positions), _BLOCK):
            likeness = vectors @ known.vectors[column : column + _BLOCK].astype(np.float32).T
            places = likeness.argmax(1)
            highest = likeness[np.arange(len(vectors)), places]
            nearest = np.where(highest > best, places + column, nearest)
            best = np.maximum(best, highest)
        for i in np.flatnonzero(best >= _LIKE):
            yield int(known.positions[nearest[i]]), int(others.positions[row + i])


def _look_alike(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    return float(_correlated(first, _FINE, "RGB") @ _correlated(second, _FINE, "RGB")) >= _SAME


def _same_file(first: ImageSet, i: int, second: ImageSet, j: int) -> bool:
    return first.files is not None and second.files is not None and _same_bytes(first.files[i], second.files[j])


def _same_bytes(first: Source, second: Source) -> bool:
    if size_of(first) != size_of(second):
        return False
    with open_source(first) as one, open_source(second) as other:
        return one.read() == other.read()
