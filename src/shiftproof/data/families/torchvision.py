"""Stanford Cars, DTD, SUN397 and Food-101, listed by torchvision's readers; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shiftproof.data.labels import ClassSpace
from shiftproof.data.sets import ImageSet, picture_set
from shiftproof.errors import InputError

SUN397_LISTS = {"train": "Training_01.txt", "test": "Testing_01.txt"}


def read_cars(root: Path, part: str) -> ImageSet:
    """The "train" or "test" images of Stanford Cars in ``root/stanford_cars``: 196 models of cars."""
    from torchvision.datasets import StanfordCars

    return _read("cars", _holder(root, "stanford_cars"), part, lambda folder: StanfordCars(folder, split=part))


def read_dtd(root: Path, part: str) -> ImageSet:
    """The "train", "val" or "test" images of the first partition of DTD in ``root/dtd``: 47 kinds of texture."""
    from torchvision.datasets import DTD

    return _read("dtd", _holder(root, "dtd"), part, lambda folder: DTD(folder, split=part, partition=1))


def read_food101(root: Path, part: str) -> ImageSet:
    """The "train" or "test" images of Food-101 in ``root/food-101``: 101 dishes."""
    from torchvision.datasets import Food101

    return _read("food101", _holder(root, "food-101"), part, lambda folder: Food101(folder, split=part))


def read_sun397(root: Path, part: str) -> ImageSet:
    """The "train" or "test" images of SUN397's first partition in ``root/SUN397``, or "all": 397 kinds of scenes.

    The partition is that of ``Training_01.txt`` and ``Testing_01.txt``, which come in an archive of their own and must
    lie in ``root/SUN397`` or ``root``.
    """
    from torchvision.datasets import SUN397

    holder = _holder(root, "SUN397")
    images = _read("sun397", holder, part, SUN397)
    if part == "all":
        return images
    name = SUN397_LISTS[part]
    places = (holder / "SUN397" / name, holder / name, holder / "Partitions" / name)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"{holder} has no {name}, which lists the {part} images of SUN397's first partition. Put it there; it "
            "is in Partitions.zip of the data set's page. sun397:all:PATH is every image."
        )
    listed = {line.strip().lstrip("/") for line in file.read_text(encoding="utf-8").splitlines()}
    return images.subset([i for i, sample in enumerate(images.ids) if sample in listed])


def _holder(root: Path, name: str) -> Path:
    """The folder that holds the data set's folder ``name``, if ``root`` is either of the two."""
    return root.parent if root.name == name and not (root / name).is_dir() else root


def _read(family: str, holder: Path, part: str, open_set: Callable[[Path], Any]) -> ImageSet:
    try:
        content = open_set(holder)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{family}:{part}:{holder} cannot be read ({str(error).splitlines()[0]}). Unpack the data as in the table "
            "of docs/data-sets.md; nothing is downloaded."
        ) from error
    if family == "cars":
        pairs = [(Path(path), int(label)) for path, label in content._samples]
    else:
        pairs = [(Path(path), int(label)) for path, label in zip(content._image_files, content._labels, strict=True)]
    pairs.sort()  # torchvision lists SUN397 in the order of the file system, which differs from machine to machine
    names = tuple(str(name) for name in content.classes)
    # Names such as "apartment_building/outdoor" and "Ram C/V Cargo Van" cannot name a folder as they are.
    ids = tuple(name.replace("/", "-") for name in names)
    words = tuple(name.replace("/", " ").replace("_", " ") if family != "cars" else name for name in names)
    folder = {"cars": "stanford_cars", "dtd": "dtd/dtd/images", "sun397": "SUN397", "food101": "food-101/images"}[
        family
    ]
    samples = [path.relative_to(holder / folder).as_posix() for path, _ in pairs]
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    return picture_set(f"{family}:{part}:{holder}", ClassSpace(ids, words), samples, labels, [p for p, _ in pairs])
