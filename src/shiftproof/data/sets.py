"""Labelled image sets: in memory, from class folders, from a CSV; decoded only when read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import IMAGE_SUFFIXES, decode
from shiftproof.errors import InputError, require_choice, require_equal_length
from shiftproof.storage import read_rows

SET_KINDS = ("folder", "csv")


@dataclass(frozen=True)
class ImageSet:
    """N labelled images: ``read(i)`` gives the (H, W, 3) uint8 pixels of the i-th.

    ``ids`` are unique and name the samples in kept predictions; ``labels`` are (N,) positions in
    ``classes``; ``groups``, where given, splits the samples for reporting (seen and withheld renditions, say).
    ``in_memory`` says that reading costs nothing, so that no threads are spent on it.
    """

    name: str
    classes: ClassSpace
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    read: Callable[[int], NDArray[np.uint8]] = field(repr=False, compare=False)
    groups: tuple[str, ...] | None = None
    in_memory: bool = False

    def __post_init__(self) -> None:
        require_equal_length(f"ids and labels of {self.name}", self.ids, self.labels)
        if not self.ids:
            raise InputError(f"{self.name} holds no image. Check the path.")

    def __len__(self) -> int:
        return len(self.ids)

    def relabelled(self, classes: ClassSpace) -> ImageSet:
        """The same images, labelled in another class space by class id."""
        if classes.ids == self.classes.ids:
            return self
        labels = classes.labels_of([self.classes.ids[label] for label in self.labels], self.name)
        return replace(self, classes=classes, labels=labels)

    def subset(self, positions: Sequence[int]) -> ImageSet:
        """The images at the given positions, in their order."""
        chosen = list(positions)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            labels=self.labels[chosen],
            read=lambda i: self.read(chosen[i]),
            groups=None if self.groups is None else tuple(self.groups[i] for i in chosen),
        )

    def mapped(self, change: Callable[[int, NDArray[np.uint8]], NDArray[np.uint8]], name: str) -> ImageSet:
        """The same samples with pixels changed by ``change(position, pixels)``."""
        return replace(self, name=name, read=lambda i: change(i, self.read(i)), in_memory=False)


def array_set(
    name: str,
    classes: ClassSpace,
    ids: Sequence[str],
    labels: NDArray[np.int64],
    pixels: Callable[[], NDArray[np.uint8]],
    groups: Sequence[str] | None = None,
) -> ImageSet:
    """A set whose (N, H, W, 3) pixels are made in one go when the first is read."""
    made: list[NDArray[np.uint8]] = []
    lock = threading.Lock()

    def read(i: int) -> NDArray[np.uint8]:
        with lock:
            if not made:
                made.append(pixels())
        pixels_of_one: NDArray[np.uint8] = made[0][i]
        return pixels_of_one

    return ImageSet(name, classes, tuple(ids), labels, read, None if groups is None else tuple(groups), in_memory=True)


def load_set(spec: str, classes: ClassSpace | None = None, *, partial: bool = False) -> ImageSet:
    """``folder:PATH`` (``class/image``) or ``csv:PATH`` (``filepath,label``).

    With ``classes``, labels are matched to that space by name: a class that it lacks is an error, and so is one that
    the set lacks, unless ``partial``. Without, the classes are the set's own, sorted.
    """
    kind, _, path = spec.partition(":")
    require_choice("data name", kind, SET_KINDS)
    entries = _folder_entries(Path(path)) if kind == "folder" else _csv_entries(Path(path))
    class_ids = [class_id for _, class_id, _ in entries]
    if classes is None:
        classes = ClassSpace.from_ids(sorted(set(class_ids)))
    labels = classes.labels_of(class_ids, spec)
    if not partial:
        classes.require_all(class_ids, spec, "Add them; a shift may also be marked partial: true in the run file.")
    paths = [path for path, _, _ in entries]
    ids = tuple(sample for _, _, sample in entries)
    return ImageSet(spec, classes, ids, labels, lambda i: decode(paths[i]))


def _folder_entries(root: Path) -> list[tuple[Path, str, str]]:
    """(path, class, id) of every image under ``root/class/``, sorted."""
    if not root.is_dir():
        raise InputError(f"the folder {root} does not exist. Check the path after 'folder:'.")
    entries = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise InputError(
                f"the class folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}). Fill it or take it out."
            )
        entries += [(image, folder.name, image.relative_to(root).as_posix()) for image in images]
    if not entries:
        raise InputError(f"the folder {root} holds no class folder with images. It must look like class/image.jpg.")
    return entries


def _csv_entries(path: Path) -> list[tuple[Path, str, str]]:
    """(path, class, id) of every row; paths are relative to the CSV's folder."""
    entries = [(path.parent / file, label, file) for file, label in read_rows(path, ("filepath", "label"))]
    if not entries:
        raise InputError(f"{path} holds no row. It needs one a labelled image.")
    if len({sample for _, _, sample in entries}) < len(entries):
        raise InputError(f"{path} names a file twice. Every image may stand in it once.")
    return entries
