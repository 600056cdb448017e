"""A cache of resized pictures: uint8 pixels in a memory-mapped file, each checked against the file it was made from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import filelock
import numpy as np
import PIL
import xxhash
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from shiftproof.data.decoding import KINDS, Picture
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sources import Source
from shiftproof.errors import InputError
from shiftproof.storage import expanded, write_atomically

_VERSION = 1  # raise it when decoding or resizing give other pixels than before
_CHECKSUM = 8  # bytes
_OF_FLOATS = ("mean", "std")  # fields of a preprocessing that do not change the bytes


class ImageCache:
    """The (size, size, 3) uint8 pixels of the pictures of one set, each written when it is first read.

    The file is a ``.npy`` of one row for each picture: its pixels, a byte for its conversions, and a checksum of both
    that is seeded with the ``stamp`` of the picture's file. A row that was never written, or only in part, that is
    damaged, or that was made from another version of the file does not match its checksum and counts as absent. So an
    interrupted process leaves nothing to repair, and several processes may write at once. A row is written as a file
    is, and not through the map, where a full disk would kill the process.

    Raises an InputError if the file cannot be created in the directory.
    """

    def __init__(
        self, directory: str | Path, sources: Sequence[Source], preprocessing: Preprocessing, *, jpeg_draft: bool
    ) -> None:
        self._size = preprocessing.size
        self._file = expanded(directory) / f"{_key(sources, preprocessing, jpeg_draft=jpeg_draft)}.npy"
        self._writable, self._lock = True, threading.Lock()
        shape = (len(sources), 3 * self._size**2 + 1 + _CHECKSUM)
        try:
            rows = _opened(self._file, shape)
        except OSError as error:
            raise InputError(
                f"the image cache {directory} cannot be used ({error}). Choose another `image_cache`, or leave it out."
            ) from error
        self._start, self._rows = int(rows.offset), np.asarray(rows)

    def get(self, i: int, stamp: str) -> Picture | None:
        """The i-th picture, or None if it is not there yet or was made from a file with another stamp."""
        row = np.array(self._rows[i])  # a copy, so that no other process changes what has been checked
        if _checksum(row[:-_CHECKSUM], stamp) != row[-_CHECKSUM:].tobytes():
            return None
        flags = int(row[-_CHECKSUM - 1])
        return Picture(
            row[: -_CHECKSUM - 1].reshape(self._size, self._size, 3),
            tuple(kind for bit, kind in enumerate(KINDS) if flags >> bit & 1),
        )

    def put(self, i: int, stamp: str, picture: Picture) -> None:
        """Stores the i-th picture; if that fails, as on a full disk, a warning says so and no other is stored."""
        if not self._writable:
            return
        flags = sum(1 << KINDS.index(kind) for kind in picture.conversions)
        content = np.append(picture.pixels, np.uint8(flags))
        try:
            with self._file.open("r+b") as file:
                file.seek(self._start + i * self._rows.shape[1])
                file.write(content.tobytes() + _checksum(content, stamp))
        except OSError as error:
            self._stop_writing(error)

    def _stop_writing(self, error: OSError) -> None:
        with self._lock:  # several threads may fail at once
            first, self._writable = self._writable, False
        if first:
            warnings.warn(
                f"the image cache {self._file} cannot be written ({error}). Pictures that it lacks are decoded "
                "whenever they are read.",
                stacklevel=3,
            )


def _checksum(content: NDArray[np.uint8], stamp: str) -> bytes:
    return xxhash.xxh3_64_digest(content.data, seed=xxhash.xxh3_64_intdigest(stamp.encode()))


def _key(sources: Sequence[Source], preprocessing: Preprocessing, *, jpeg_draft: bool) -> str:
    """A digest of the places of the pictures, of everything that decides their bytes, and of what may change these."""
    settings = {name: value for name, value in asdict(preprocessing).items() if name not in _OF_FLOATS}
    digest = hashlib.sha256(f"{_VERSION} {PIL.__version__} {settings} {jpeg_draft}".encode())
    for source in sources:
        place = os.path.abspath(source) if isinstance(source, Path) else str(source)
        digest.update(f"\0{place}".encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]


def _opened(file: Path, shape: tuple[int, int]) -> np.memmap:
    """Maps a file of rows of this shape; one that is absent, cut off or no such file is created anew, without rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(file.with_suffix(".lock")):
        with contextlib.suppress(FileNotFoundError, ValueError):
            rows = open_memmap(file, mode="r")
            if rows.shape == shape and rows.dtype == np.uint8 and rows.flags.c_contiguous:
                return rows
        write_atomically(file, lambda path: open_memmap(path, mode="w+", dtype=np.uint8, shape=shape))
        return open_memmap(file, mode="r")
