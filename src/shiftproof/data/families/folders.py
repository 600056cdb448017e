"""What the families of picture folders share: finding the folder that a name means, and labelling its pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from shiftproof.data.families.classes import wnid_space
from shiftproof.data.formats.entries import Entry
from shiftproof.data.labels import ClassSpace
from shiftproof.data.sets import ImageSet, picture_set
from shiftproof.errors import InputError

_WNID = re.compile(r"n\d{8}")


def subfolder(root: Path, names: Sequence[str], is_it: Callable[[Path], bool], what: str) -> Path:
    """The first of the folders ``root/NAME`` that exists, or else ``root`` itself if ``is_it`` recognises it.

    Raises an InputError that says what ``what`` must look like.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    if root.is_dir() and is_it(root):
        return root
    exists = "" if root.is_dir() else " (it does not exist)"
    raise InputError(f"{root}{exists} is not {what}. Name the folder that holds {' or '.join(names)}.")


def has_folders(root: Path, name: Callable[[str], bool]) -> bool:
    """Whether a folder has a folder in it whose name is of the given kind."""
    return any(child.is_dir() and name(child.name) for child in root.iterdir())


def is_wnid(name: str) -> bool:
    """Whether a name looks like a WordNet id.

    >>> is_wnid("n01440764"), is_wnid("tench")
    (True, False)
    """
    return _WNID.fullmatch(name) is not None


def wnid_set(name: str, entries: Iterable[Entry]) -> ImageSet:
    """A set of pictures whose class ids are ImageNet's; raises an InputError as ``wnid_space`` does."""
    entries = list(entries)
    return labelled_set(name, entries, wnid_space((entry.class_id for entry in entries), name))


def labelled_set(name: str, entries: Sequence[Entry], classes: ClassSpace) -> ImageSet:
    """A set of pictures in a class space that has the class of every entry."""
    labels = classes.labels_of([entry.class_id for entry in entries], name)
    return picture_set(name, classes, [entry.sample for entry in entries], labels, [entry.picture for entry in entries])
