"""ObjectNet: photographs of 313 kinds of objects, 113 of which are classes of ImageNet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.families.classes import objectnet_classes
from shiftproof.data.families.folders import has_folders, subfolder, wnid_set
from shiftproof.data.formats.folder import read_folder
from shiftproof.data.protocols import Protocol
from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError

PROTOCOLS = ("113-way", "masked", "1000-way")
_BORDER = 2  # pixels of the red border, with which the pictures are marked as not to be trained on, and of its blur


def read_objectnet(root: Path, protocol: str) -> ImageSet:
    """The pictures of the 113 objects that ImageNet has as well, without their border.

    An object is one to three of ImageNet's classes, and a model is right that answers any of them. The protocols differ
    in what else it may answer: "113-way" takes the largest logit of an object's classes and chooses among the 113
    objects, "masked" chooses among the 125 classes, and "1000-way" among all. The first two give the same accuracy and
    different confidences. ``root`` holds a folder ``images`` of folders such as ``alarm_clock``, or is that folder.
    """
    objects = objectnet_classes()
    folder = subfolder(
        root,
        ("images", "objectnet-1.0/images"),
        lambda folder: has_folders(folder, objects.__contains__),
        "ObjectNet with folders such as alarm_clock",
    )
    entries = [entry for entry in read_folder(folder) if entry.class_id in objects]
    name = f"objectnet:{protocol}:{root}"
    if not entries:
        raise InputError(f"{name} has no pictures of the 113 objects that are classes of ImageNet. Check the path.")
    images = wnid_set(name, [entry._replace(class_id=objects[entry.class_id][0]) for entry in entries])
    rule = Protocol(
        f"objectnet, {protocol}",
        tuple(objects.values()),
        others=protocol == "1000-way",
        pooled=protocol == "113-way",
    )
    return replace(images.mapped(_without_border, name), protocol=rule)


def _without_border(_: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[_BORDER:-_BORDER, _BORDER:-_BORDER]
