"""Data that are checked before a long job begins: every file exists, and one sample of each set can be decoded."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from shiftproof import progress
from shiftproof.data.sets import ImageSet
from shiftproof.data.sources import Source
from shiftproof.errors import InputError, ResultWarning, counted, listed

_CHECKED_TOGETHER = 64  # pictures that one thread decodes before it reports


def require_readable(sets: Iterable[tuple[str, ImageSet]]) -> None:
    """Raises an InputError unless all files of the named sets exist and the first sample of each can be decoded.

    A long job calls this before its first step, so that a file that is missing from the last set is not noticed hours
    later. Sets in memory need no check.

    >>> from shiftproof.data.suites import load_data
    >>> require_readable([("test", load_data("emoji"))])
    """
    named = list(sets)
    for name, images in named:
        require_files(images.files or (), name)
    for _, images in named:
        if not images.in_memory:
            images.read(0)


def without_undecodable(images: ImageSet) -> ImageSet:
    """The set without the pictures that cannot be decoded: a warning names them, and ``skipped`` counts them.

    Every picture is decoded for this once, which takes as long as an evaluation without the model. Raises an InputError
    for a file that is missing, which is likely to be a mistake in the path, and where no picture is left.

    >>> from shiftproof.data.suites import load_data
    >>> without_undecodable(load_data("emoji")).skipped  # they are drawn, not read from files
    0
    """
    if images.in_memory:
        return images
    require_files(images.files or (), images.name)
    errors: dict[int, str] = {}

    def check(positions: range) -> None:
        for i in positions:
            try:
                images.read(i)
            except InputError as error:
                errors[i] = str(error)

    starts = range(0, len(images), _CHECKED_TOGETHER)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [range(start, min(start + _CHECKED_TOGETHER, len(images))) for start in starts]
        for done, _ in enumerate(pool.map(check, jobs), 1):
            progress.report(f"check {images.name}", done, len(jobs))
    if not errors:
        return images
    first = errors[min(errors)]
    if len(errors) == len(images):
        raise InputError(f"none of the {len(images):,} images in {images.name} can be decoded. The first: {first}")
    names = listed(images.ids[i] for i in sorted(errors))
    warnings.warn(
        f"skipped {len(errors):,} of {len(images):,} images in {images.name}, which cannot be decoded: {names}. "
        f"The first: {first}",
        ResultWarning,
        stacklevel=2,
    )
    kept = images.subset([i for i in range(len(images)) if i not in errors])
    return replace(kept, skipped=images.skipped + len(errors))


def require_files(sources: Sequence[Source], name: str) -> None:
    """Raises an InputError that names the first of the missing files of the set ``name``, and their number.

    Pictures inside larger files are not looked up: their format has read the larger file to list them.
    """
    if missing := missing_files(paths := [source for source in sources if isinstance(source, Path)]):
        others = f" ({counted(len(missing), 'file')} of {len(paths):,} are missing)" if len(missing) > 1 else ""
        raise InputError(
            f"the image {missing[0]} of {name} does not exist{others}. Restore it, or remove its entry from the data."
        )


def missing_files(paths: Sequence[Path]) -> list[Path]:
    """The paths that lead to no file, in their order.

    Each folder is listed once, which is faster than a look at each of many files. Only names that the list does not
    contain are looked up, since a file system may know a file under another spelling of its name.
    """
    listed: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        if path.parent not in listed:
            listed[path.parent] = _files_in(path.parent)
        if path.name not in listed[path.parent] and not path.is_file():
            missing.append(path)
    return missing


def _files_in(folder: Path) -> set[str]:
    """The names of the files in a folder, and none where it cannot be listed."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}
    return set()
