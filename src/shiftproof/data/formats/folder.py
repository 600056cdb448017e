"""``folder:PATH``: one folder for each class, as in ``class/image.jpg``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shiftproof.data.formats.entries import Entry, NamedPicture
from shiftproof.data.paths import require_folder
from shiftproof.data.pictures import (
    SkippedFiles,
    find_pictures,
    iterate_pictures,
    picture_suffixes,
    require_pictures,
    require_target,
    skip_reason,
)
from shiftproof.errors import InputError


def read_folder(root: Path) -> list[Entry]:
    """One entry per image under ``root/class/``, at any depth, sorted; a warning counts the files that were skipped.

    Raises an InputError if the folder does not exist, has no class folders, or has one without images.
    """
    require_folder(root, "Check the path after 'folder:'.")
    entries: list[Entry] = []
    skipped = SkippedFiles()
    for folder in sorted(root.iterdir()):
        if require_target(folder).is_dir():
            if reason := skip_reason(folder.name):
                skipped.add(reason, folder.name)
                continue
            images = _of_class(folder, skipped)
            entries += [Entry(image, folder.name, image.relative_to(root).as_posix()) for image in images]
        elif folder.suffix.lower() in picture_suffixes() and not skip_reason(folder.name):
            skipped.add("beside the class folders", folder.name)
    if not entries:
        raise InputError(f"the folder {root} has no class folders with images. It must look like class/image.jpg.")
    skipped.warn(f"folder:{root}")
    return entries


def folder_pictures(root: Path) -> Iterator[NamedPicture]:
    """The pictures under a folder one by one, at any depth and sorted; their folders need not be classes.

    A warning counts the files that were skipped. Raises an InputError if the folder does not exist.
    """
    require_folder(root, "It must hold the images.")
    skipped = SkippedFiles()
    for path in iterate_pictures(root, skipped):
        yield NamedPicture(path.relative_to(root).as_posix(), path)
    skipped.warn(str(root))


def _of_class(folder: Path, skipped: SkippedFiles) -> list[Path]:
    skipped_here = SkippedFiles()
    images = require_pictures(find_pictures(folder, skipped_here), f"the class folder {folder}", skipped_here)
    skipped.update(skipped_here)
    return images
