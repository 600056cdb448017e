"""The classes of ImageNet and of the sets that share some of them, from tables in the package."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from shiftproof.data.labels import ClassSpace
from shiftproof.errors import InputError, listed
from shiftproof.storage import packaged_path, read_rows

SUPER_CLASSES = (
    *("dog", "bird", "wheeled vehicle", "reptile", "carnivore", "insect", "musical instrument", "primate", "fish"),
)
_TABLE = packaged_path("shiftproof", "assets", "imagenet.csv")
_OBJECTNET = packaged_path("shiftproof", "assets", "objectnet.csv")


@dataclass(frozen=True)
class ImageNetClasses:
    """The 1,000 classes of ImageNet, in the order of every pretrained head, which is that of their WordNet ids.

    ``wnids`` and ``names`` have one entry a class; the names are those of OpenAI CLIP, made distinct. ``in_a`` and
    ``in_r`` are the ids of the 200 classes of ImageNet-A and of the other 200 of ImageNet-R. ``super_classes`` maps the
    370 ids that belong to ImageNet-9 to one of ``SUPER_CLASSES``.
    """

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    in_a: tuple[str, ...]
    in_r: tuple[str, ...]
    super_classes: dict[str, str]


@cache
def imagenet_classes() -> ImageNetClasses:
    """Reads the table of ImageNet's classes.

    >>> classes = imagenet_classes()
    >>> len(classes.wnids), len(classes.in_a), len(classes.in_r), len(set(classes.in_a) & set(classes.in_r))
    (1000, 200, 200, 86)
    """
    rows = [row.fields for row in read_rows(_TABLE, ("wnid", "name", "in_a", "in_r", "super_class"))]
    return ImageNetClasses(
        wnids=tuple(row["wnid"] for row in rows),
        names=tuple(row["name"] for row in rows),
        in_a=tuple(row["wnid"] for row in rows if row["in_a"] == "1"),
        in_r=tuple(row["wnid"] for row in rows if row["in_r"] == "1"),
        super_classes={row["wnid"]: row["super_class"] for row in rows if row["super_class"] != "none"},
    )


@cache
def objectnet_classes() -> dict[str, tuple[str, ...]]:
    """The ImageNet ids that mean the same object, by the folder of ObjectNet: 125 ids of 113 folders.

    >>> objectnet_classes()["alarm_clock"]
    ('n02708093', 'n03196217')
    """
    rows = read_rows(_OBJECTNET, ("folder", "wnids"))
    return {row.fields["folder"]: tuple(row.fields["wnids"].split()) for row in rows}


def wnid_space(wnids: Iterable[str], what: str) -> ClassSpace:
    """The class space of some of ImageNet's classes, in ImageNet's order, named in words.

    Raises an InputError that lists the ids which are none of ImageNet's 1,000.

    >>> wnid_space(["n01443537", "n01440764"], "photos").names
    ('tench', 'goldfish')
    """
    classes, present = imagenet_classes(), set(wnids)
    if unknown := sorted(present - set(classes.wnids)):
        raise InputError(
            f"{what} has folders that are not named by an id of ImageNet's 1,000 classes: {listed(unknown)}. "
            "Each folder must be named like n01440764; for other folders, write folder:PATH."
        )
    pairs = [(wnid, name) for wnid, name in zip(classes.wnids, classes.names, strict=True) if wnid in present]
    return ClassSpace(tuple(wnid for wnid, _ in pairs), tuple(name for _, name in pairs))
