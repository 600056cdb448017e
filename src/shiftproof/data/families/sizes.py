"""The published sizes of public data sets, which show that a download or an archive is incomplete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from shiftproof.data.families.registry import FAMILIES, split_family_name


class Size(NamedTuple):
    """The number of images and of classes; ``balanced`` says whether every class has the same number of images."""

    images: int
    classes: int
    balanced: bool = False


def known_size(data: str) -> Size | None:
    """The published size of the data that a name such as ``imagenet:val:PATH`` stands for, None if it is not known.

    >>> known_size("imagenet:val:data/imagenet")
    Size(images=50000, classes=1000, balanced=True)
    """
    if data.partition(":")[0] not in FAMILIES:
        return None
    kind, part, _ = split_family_name(data)
    return SIZES.get(kind, {}).get(part or FAMILIES[kind].parts[0])


SIZES: Mapping[str, Mapping[str, Size]] = {
    "imagenet": {"val": Size(50_000, 1000, True), "train": Size(1_281_167, 1000)},
    "imagenet-v2": {
        variant: Size(10_000, 1000, True) for variant in ("matched-frequency", "threshold0.7", "top-images")
    },
    "imagenet-r": {"all": Size(30_000, 200)},
    "imagenet-sketch": {"all": Size(50_889, 1000)},
    "imagenet-a": {"all": Size(7_500, 200)},
    "cifar10": {"test": Size(10_000, 10, True), "train": Size(50_000, 10, True)},
    "cifar10.1": {"v6": Size(2_000, 10, True), "v4": Size(2_021, 10)},
    "cifar10.2": {"test": Size(2_000, 10), "train": Size(10_000, 10)},
    "cifar100": {"test": Size(10_000, 100, True), "train": Size(50_000, 100, True)},
    "cars": {"test": Size(8_041, 196), "train": Size(8_144, 196)},
    "dtd": {part: Size(1_880, 47, True) for part in ("test", "train", "val")},
    "sun397": {
        "test": Size(19_850, 397, True),
        "train": Size(19_850, 397, True),
        "all": Size(108_754, 397),
    },
    "food101": {"test": Size(25_250, 101, True), "train": Size(75_750, 101, True)},
    "camelyon17": {
        "train": Size(302_436, 2),
        "id_val": Size(33_560, 2),
        "val": Size(34_904, 2),
        "test": Size(85_054, 2),
    },
}
