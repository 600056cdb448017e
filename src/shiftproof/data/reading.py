"""How the pictures of a set are read: as they are, or resized for a model, from their files or from a cache."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.decoding import Conversions, Picture, read_picture, read_resized_picture
from shiftproof.data.image_cache import ImageCache
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sources import Source, stamp_of


@dataclass(frozen=True)
class ReadSettings:
    """How picture files are read for a model's evaluation transform; random crops are cut from the whole picture.

    ``cache`` is a directory for resized pictures, each of which is then decoded once only; its pixels are the same to
    the bit. With ``jpeg_draft``, a JPEG that is at least twice as large as it is scaled to is decoded at a half, a
    quarter or an eighth of its size, which is faster and changes its pixels a little.

    >>> ReadSettings(cache="~/.cache/images").jpeg_draft
    False
    """

    cache: str | Path | None = None
    jpeg_draft: bool = False


@dataclass(frozen=True)
class LoadedPictures:
    """All pictures that a set was loaded with; its subsets share them, their counts and their caches."""

    sources: Sequence[Source]
    conversions: Conversions
    caches: dict[tuple[ReadSettings, Preprocessing], ImageCache] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def cache(self, settings: ReadSettings, preprocessing: Preprocessing) -> ImageCache | None:
        """The cache of the pictures under these settings, which is opened once; None without one."""
        if settings.cache is None:
            return None
        with self.lock:
            key = settings, preprocessing
            if key not in self.caches:
                self.caches[key] = ImageCache(
                    settings.cache, self.sources, preprocessing, jpeg_draft=settings.jpeg_draft
                )
            return self.caches[key]


@dataclass(frozen=True)
class PictureReader:
    """The ``read`` of a set of picture files: called with i, it decodes the picture at the i-th of its ``positions``.

    A set whose ``read`` is replaced, because its pixels are changed, has no ``resized`` any more. So it never gets the
    unchanged pixels from a cache.
    """

    pictures: LoadedPictures
    positions: Sequence[int]
    settings: ReadSettings = ReadSettings()

    @classmethod
    def of(cls, sources: Sequence[Source], conversions: Conversions) -> PictureReader:
        """The reader of all pictures of a set."""
        return cls(LoadedPictures(sources, conversions), range(len(sources)))

    def __call__(self, i: int) -> NDArray[np.uint8]:
        """The (H, W, 3) uint8 pixels of the i-th picture."""
        place = self.positions[i]
        return self._noted(place, read_picture(self.pictures.sources[place]))

    def resized(self, i: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """The (size, size, 3) uint8 pixels of the i-th picture after the model's evaluation transform."""
        place = self.positions[i]
        source, cache = self.pictures.sources[place], self.pictures.cache(self.settings, preprocessing)
        stamp, picture = None, None
        if cache is not None:
            with contextlib.suppress(OSError):  # the file is gone, which decoding it reports
                stamp = stamp_of(source)  # before the picture is decoded, since its file may change meanwhile
                picture = cache.get(place, stamp)
        if picture is None:
            picture = read_resized_picture(source, preprocessing, jpeg_draft=self.settings.jpeg_draft)
            if cache is not None and stamp is not None:
                cache.put(place, stamp, picture)
        return self._noted(place, picture)

    def _noted(self, place: int, picture: Picture) -> NDArray[np.uint8]:
        self.pictures.conversions.note(place, picture.conversions)
        return picture.pixels

    def subset(self, positions: Sequence[int]) -> PictureReader:
        """The reader of the pictures at these positions, in their order."""
        return replace(self, positions=[self.positions[i] for i in positions])

    def read_with(self, settings: ReadSettings) -> PictureReader:
        """The same reader with other settings."""
        return replace(self, settings=settings)
