"""ImageNet and the shifts whose folders are named by its classes: V2, R, A and Sketch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shiftproof.data.families.classes import imagenet_classes
from shiftproof.data.families.folders import has_folders, is_wnid, subfolder, wnid_set
from shiftproof.data.formats.folder import read_folder
from shiftproof.data.protocols import Protocol
from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError

V2_VARIANTS = ("matched-frequency", "threshold0.7", "top-images")


def read_imagenet(root: Path, part: str) -> ImageSet:
    """The pictures of ``root/PART/WNID`` or ``root/imagenet/PART/WNID``, or else of ``root/WNID``."""
    folder = subfolder(
        root, (part, f"imagenet/{part}"), _has_wnids, f"ImageNet with a folder {part!r} of folders such as n01440764"
    )
    if part == "val" and not _has_wnids(folder):
        raise InputError(
            f"{folder} has no folders such as n01440764. The validation pictures come in one folder; sort "
            "them into the folders of their classes, e.g. with the script valprep.sh that many repositories have."
        )
    return wnid_set(f"imagenet:{part}:{root}", read_folder(folder))


def read_imagenet_v2(root: Path, variant: str) -> ImageSet:
    """The pictures of a variant of ImageNetV2, whose folders are numbers from 0 to 999, mapped as numbers.

    ``root`` is the folder of the variant or the one that holds its folder.
    """
    folder = subfolder(
        root,
        (f"imagenetv2-{variant}-format-val", f"imagenetv2-{variant}"),
        lambda folder: has_folders(folder, str.isdigit) or _has_wnids(folder),
        "ImageNetV2 with folders from 0 to 999",
    )
    wnids = imagenet_classes().wnids

    def class_of(name: str) -> str:
        if name.isdigit() and int(name) >= len(wnids):
            raise InputError(f"{folder / name} is no class of ImageNetV2, whose folders are numbers from 0 to 999.")
        return wnids[int(name)] if name.isdigit() else name

    entries = [entry._replace(class_id=class_of(entry.class_id)) for entry in read_folder(folder)]
    return wnid_set(f"imagenet-v2:{variant}:{root}", entries)


def read_imagenet_r(root: Path, _: str) -> ImageSet:
    """The pictures of ImageNet-R, scored on its 200 classes."""
    return _of_some_classes("imagenet-r", root, imagenet_classes().in_r)


def read_imagenet_a(root: Path, _: str) -> ImageSet:
    """The pictures of ImageNet-A, scored on its 200 classes, which are others than those of ImageNet-R."""
    return _of_some_classes("imagenet-a", root, imagenet_classes().in_a)


def read_imagenet_sketch(root: Path, _: str) -> ImageSet:
    """The pictures of ImageNet-Sketch, which has all classes."""
    folder = subfolder(root, ("sketch",), _has_wnids, "ImageNet-Sketch with folders such as n01440764")
    return wnid_set(f"imagenet-sketch:{root}", read_folder(folder))


def _of_some_classes(family: str, root: Path, wnids: tuple[str, ...]) -> ImageSet:
    folder = subfolder(root, (family,), _has_wnids, f"{family} with folders such as {wnids[0]}")
    name = f"{family}:{root}"
    images = wnid_set(name, read_folder(folder))
    if foreign := sorted(set(images.classes.ids) - set(wnids)):
        raise InputError(
            f"{name} has {len(foreign)} classes that {family} lacks, the first of them {foreign[0]!r}. "
            "ImageNet-A and ImageNet-R have 200 classes each, of which only some are the same; check the family."
        )
    protocol = Protocol(f"masked to the 200 classes of {family}", tuple((wnid,) for wnid in wnids), others=False)
    return replace(images, protocol=protocol)


def _has_wnids(folder: Path) -> bool:
    return has_folders(folder, is_wnid)
