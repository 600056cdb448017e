"""ImageNet-C and CIFAR-C: nineteen published corruptions at five severities, and the errors of AlexNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shiftproof.data.families.folders import has_folders, is_wnid, wnid_set
from shiftproof.data.formats.entries import Entry
from shiftproof.data.formats.folder import read_folder
from shiftproof.data.paths import require_folder
from shiftproof.data.protocols import Protocol
from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError

# The top-1 errors of AlexNet, averaged over the five severities (Hendrycks and Dietterich, ICLR 2019).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
EXTRA = ("gaussian_blur", "saturate", "spatter", "speckle_noise")
PARTS = {"main": tuple(ALEXNET_ERRORS), "extra": EXTRA}
MEAN = "mean of corruptions"
SEVERITIES = (1, 2, 3, 4, 5)
_ARCHIVES = ("", "noise", "blur", "weather", "digital", "extra")  # the folders that the archives may be unpacked into


def read_imagenet_c(root: Path, part: str) -> ImageSet:
    """All pictures of the 15 "main" or the four "extra" corruptions under a folder, in groups such as ``fog-3``.

    ``root`` holds ``CORRUPTION/SEVERITY/WNID``, also below the folders ``noise``, ``blur``, ``weather``, ``digital``
    and ``extra``, or is the folder of one corruption, or of one severity of it. The pictures are 224 pixels wide
    already.
    All versions of one picture belong together in intervals.
    """
    require_folder(root, "It must hold ImageNet-C, as CORRUPTION/SEVERITY/n01440764.")
    entries: list[Entry] = []
    for corruption, severity, folder in _severities(root, PARTS[part]):
        group = f"{corruption}-{severity}"
        entries += [
            entry._replace(sample=f"{corruption}/{severity}/{entry.sample}", group=group)
            for entry in read_folder(folder)
        ]
    name = f"imagenet-c:{part}:{root}"
    if not entries:
        raise InputError(f"{name} has no folders such as {PARTS[part][0]}/1/n01440764. Check the path.")
    return replace(
        wnid_set(name, entries),
        groups=tuple(str(entry.group) for entry in entries),
        sources=tuple(f"{entry.class_id}/{Path(entry.picture.name).stem}" for entry in entries),
        protocol=Protocol("imagenet-c", metrics=(MEAN, *(["mCE"] if part == "main" else []))),
        precropped=True,
    )


def _severities(root: Path, corruptions: Sequence[str]) -> list[tuple[str, int, Path]]:
    """The folders of pictures under ``root``, each with its corruption and severity."""
    if has_folders(root, is_wnid) and root.parent.name in corruptions:
        return [(root.parent.name, _severity(root), root)]
    if root.name in corruptions:
        places = [root]
    else:
        places = [root / archive / corruption for corruption in corruptions for archive in _ARCHIVES]
    return [
        (place.name, _severity(folder), folder)
        for place in places
        if place.is_dir()
        for folder in sorted(place.iterdir())
        if folder.is_dir()
    ]


def _severity(folder: Path) -> int:
    if folder.name not in map(str, SEVERITIES):
        raise InputError(f"the folder {folder} is no severity of a corruption; it must be named 1, 2, 3, 4 or 5.")
    return int(folder.name)
