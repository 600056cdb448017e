"""Where the bytes of a picture are: in a file of its own, or inside a larger file such as an archive or a table."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TypeAlias


class StoredPicture(ABC):
    """A picture inside a larger file; ``str()`` says where, for messages."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the picture is called inside the larger file."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of its bytes."""

    @property
    @abstractmethod
    def stamp(self) -> str:
        """A text that is another one once the picture has changed; raises what ``read`` raises."""

    @abstractmethod
    def read(self) -> bytes:
        """Its bytes; raises an OSError if the larger file cannot be read any more."""

    @abstractmethod
    def __str__(self) -> str: ...


Source: TypeAlias = Path | StoredPicture


def open_source(source: Source) -> io.BufferedReader | io.BytesIO:
    """Opens a picture for reading."""
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source.read())


def stamp_of(source: Source) -> str:
    """A text that is another one once the picture has changed: of a file, its size and the time of its last change.

    Raises an OSError if it cannot be read any more.
    """
    return file_stamp(source) if isinstance(source, Path) else source.stamp


def file_stamp(path: Path) -> str:
    """The size of a file in bytes, and the time of its last change in nanoseconds."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def size_of(source: Source) -> int:
    """The number of a picture's bytes."""
    return source.stat().st_size if isinstance(source, Path) else source.size
