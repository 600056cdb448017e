"""``folder:PATH``: one folder for each class, as in ``class/image.jpg``."""

from __future__ import annotations

from pathlib import Path

from shiftproof.data.formats.entries import Entry
from shiftproof.data.loading import IMAGE_SUFFIXES
from shiftproof.errors import InputError


def read_folder(root: Path) -> list[Entry]:
    """One entry per image under ``root/class/``, sorted.

    Raises an InputError if the folder does not exist, has no class folders, or has one without images.
    """
    if not root.is_dir():
        raise InputError(f"the folder {root} does not exist. Check the path after 'folder:'.")
    entries = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise InputError(
                f"the class folder {folder} contains no image ({', '.join(IMAGE_SUFFIXES)}). Fill it or remove it."
            )
        entries += [Entry(image, folder.name, image.relative_to(root).as_posix()) for image in images]
    if not entries:
        raise InputError(f"the folder {root} has no class folders with images. It must look like class/image.jpg.")
    return entries
