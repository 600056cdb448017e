"""Identical picture files in several sets, which make an accuracy look better than it is on new pictures."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shiftproof.data.sets import ImageSet

_TAIL = 4096  # bytes; files of equal size that differ mostly differ here


@dataclass(frozen=True)
class SharedFiles:
    """How many pictures of ``second`` (``count`` of its ``total``) are also in ``first``, and one such pair of files.

    ``first`` and ``second`` are the names of sets.
    """

    first: str
    second: str
    count: int
    total: int
    example: tuple[Path, Path]


class _File(NamedTuple):
    set: str
    path: Path


def find_shared_files(sets: Mapping[str, ImageSet], pairs: Sequence[tuple[str, str]]) -> tuple[SharedFiles, ...]:
    """Finds files with the same bytes in both sets of some pairs, given by name.

    Only files that agree in size are opened, and only those that also agree in their last 4 KiB are read as a whole.
    Sets that are not read from files, such as the embedded suites, are skipped, and so are files that cannot be read. A
    corrupted set counts as the files that it is made from.

    >>> from shiftproof.data.suites import load_data
    >>> find_shared_files({"train": load_data("emoji"), "test": load_data("emoji")}, [("train", "test")])
    ()
    """
    files = [_File(name, path) for name, images in sets.items() for path in images.files or ()]
    groups = [files]
    for key in (_size, _tail, _digest):
        groups = [group for some in groups for group in _grouped(some, key)]
    shared = []
    for first, second in pairs:
        examples = [
            (next(file.path for file in group if file.set == first), file.path)
            for group in groups
            if any(file.set == first for file in group)
            for file in group
            if file.set == second
        ]
        if examples:
            shared.append(SharedFiles(first, second, len(examples), len(sets[second]), examples[0]))
    return tuple(shared)


def _grouped(files: Sequence[_File], key: Callable[[Path], Hashable]) -> list[list[_File]]:
    """The files with equal keys, if they are of several sets; a file without a readable key belongs to no group."""
    groups: defaultdict[Hashable, list[_File]] = defaultdict(list)
    for file in files:
        try:
            groups[key(file.path)].append(file)
        except OSError:
            continue
    return [group for group in groups.values() if len({file.set for file in group}) > 1]


def _size(path: Path) -> int:
    return path.stat().st_size


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL, 0))
        return file.read()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
