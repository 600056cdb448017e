"""ImageNet-9, the backgrounds challenge: pictures of nine kinds of things with their background kept or exchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shiftproof.data.families.classes import SUPER_CLASSES, imagenet_classes
from shiftproof.data.families.folders import wnid_set
from shiftproof.data.formats.entries import Entry
from shiftproof.data.formats.folder import read_folder
from shiftproof.data.paths import require_folder
from shiftproof.data.protocols import Protocol
from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError
from shiftproof.storage import read_json

IMAGENET_9_VARIANTS = (
    *("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t"),
)
_FOLDER = re.compile(r"(\d{2})_.*")  # such as 00_dog and 02_wheeled vehicle
_PICTURE = re.compile(r"n\d{8}_\d+")
_MAP = "in_to_in9.json"


def read_imagenet_9(root: Path, _: str) -> ImageSet:
    """The pictures of one variant, or of all variants under a folder, which are then its groups.

    ``root`` holds ``VARIANT/val/00_dog`` and so on, or is ``VARIANT`` or ``VARIANT/val``. A model of ImageNet's 1,000
    classes is right if its answer is any class of the picture's super-class; 630 classes belong to none of the nine.
    The classes of each super-class are read from ``in_to_in9.json`` if that file lies beside the variants. All versions
    of one foreground belong together in intervals. The pictures are 224 pixels wide already.
    """
    require_folder(root, "It must hold ImageNet-9, as VARIANT/val/00_dog.")
    folders = _variants(root)
    if not folders:
        raise InputError(
            f"{root} has none of the folders of ImageNet-9, such as mixed_rand/val/00_dog. Check the path."
        )
    members = _members(root)
    entries: list[Entry] = []
    for variant, folder in folders.items():
        for entry in read_folder(folder):
            wnid = members[_super_class(folder / entry.class_id)][0]
            entries.append(entry._replace(class_id=wnid, sample=f"{variant}/{entry.sample}", group=variant))
    metrics = ("background gap",) if {"mixed_same", "mixed_rand"} <= set(folders) else ()
    return replace(
        wnid_set(f"imagenet-9:{root}", entries),
        groups=tuple(str(entry.group) for entry in entries) if len(folders) > 1 else None,
        sources=tuple(_foreground(entry) for entry in entries),
        source_kind="foreground",
        protocol=Protocol("imagenet-9, 9 super-classes from 1000-way", tuple(members.values()), metrics=metrics),
        precropped=True,
    )


def _variants(root: Path) -> dict[str, Path]:
    """The folders of class folders under ``root``, by variant."""
    if root.name == "val" and root.parent.name in IMAGENET_9_VARIANTS:
        return {root.parent.name: root}
    if root.name in IMAGENET_9_VARIANTS:
        return {root.name: root / "val"}
    return {variant: root / variant / "val" for variant in IMAGENET_9_VARIANTS if (root / variant / "val").is_dir()}


def _members(root: Path) -> Mapping[str, tuple[str, ...]]:
    """The ImageNet ids of each super-class."""
    classes = imagenet_classes()
    file = next((place / _MAP for place in (root, *root.parents[:2]) if (place / _MAP).is_file()), None)
    if file is None:
        of_wnid: Mapping[str, str] = classes.super_classes
    else:
        numbers = read_json(file)
        of_wnid = {
            wnid: SUPER_CLASSES[int(numbers[str(k)])]
            for k, wnid in enumerate(classes.wnids)
            if int(numbers.get(str(k), -1)) >= 0
        }
    return {name: tuple(wnid for wnid in classes.wnids if of_wnid.get(wnid) == name) for name in SUPER_CLASSES}


def _super_class(folder: Path) -> str:
    match = _FOLDER.fullmatch(folder.name)
    if match is None or int(match[1]) >= len(SUPER_CLASSES):
        raise InputError(
            f"{folder} is no class of ImageNet-9, whose folders are 00_dog, 01_bird and so on up to 08_fish."
        )
    return SUPER_CLASSES[int(match[1])]


def _foreground(entry: Entry) -> str:
    """The picture that the foreground is from, which every version names first."""
    match = _PICTURE.search(entry.picture.name)
    return match[0] if match else Path(entry.picture.name).stem
