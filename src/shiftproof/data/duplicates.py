"""Identical picture files in several sets, which make an accuracy look better than it is on new pictures."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shiftproof.data.sets import ImageSet
from shiftproof.data.sources import Source, open_source, size_of

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
    example: tuple[Source, Source]


class _File(NamedTuple):
    set: str
    source: Source


def find_shared_files(sets: Mapping[str, ImageSet], pairs: Sequence[tuple[str, str]]) -> tuple[SharedFiles, ...]:
    """Finds files with the same bytes in both sets of some pairs, given by name.

    Only files that agree in size are opened, and only those that also agree in their last 4 KiB are read as a whole.
    Sets that are not read from files, such as the embedded suites, are skipped, and so are files that cannot be read. A
    corrupted set counts as the files that it is made from.

    >>> from shiftproof.data.suites import load_data
    >>> find_shared_files({"train": load_data("emoji"), "test": load_data("emoji")}, [("train", "test")])
    ()
    """
    files = [_File(name, source) for name, images in sets.items() for source in images.files or ()]
    groups = [files]
    for key in (size_of, _tail, _digest):
        groups = [group for some in groups for group in _grouped(some, key)]
    shared = []
    for first, second in pairs:
        examples = [
            (next(file.source for file in group if file.set == first), file.source)
            for group in groups
            if any(file.set == first for file in group)
            for file in group
            if file.set == second
        ]
        if examples:
            shared.append(SharedFiles(first, second, len(examples), len(sets[second]), examples[0]))
    return tuple(shared)


def _grouped(files: Sequence[_File], key: Callable[[Source], Hashable]) -> list[list[_File]]:
    """The files with equal keys, if they are of several sets; a file without a readable key belongs to no group."""
    groups: defaultdict[Hashable, list[_File]] = defaultdict(list)
    for file in files:
        try:
            groups[key(file.source)].append(file)
        except OSError:
            continue
    return [group for group in groups.values() if len({file.set for file in group}) > 1]


def _tail(source: Source) -> bytes:
    with open_source(source) as file:
        file.seek(max(size_of(source) - _TAIL, 0))
        return file.read()


def _digest(source: Source) -> str:
    with open_source(source) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
