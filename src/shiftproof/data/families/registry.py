"""The families of public data by the name that precedes the colon in ``imagenet:PATH``; a new family is added here.

A data name is ``NAME:PATH`` or ``NAME:PART:PATH``. A part is what a family can be read as: a split, a variant or a
protocol. A suite is ``NAME:PATH`` of a family that has shifts: its reference, and those of its shifts that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shiftproof.data.families import backgrounds, cifar, corruptions, domains, imagenet, objectnet, torchvision, wilds
from shiftproof.data.labels import ClassSpace
from shiftproof.data.protocols import protocol_of
from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError, nearest
from shiftproof.storage import expanded

SHIFT = "shift"  # the split that a data name stands for as a shift


@dataclass(frozen=True)
class Family:
    """One public data set: ``read(path, part)`` gives a part of it.

    ``parts`` are what may be named between name and path; the first is read where no other is implied. ``splits`` are
    the parts that the splits of a reference, and a shift, stand for. ``shifts(path)`` yields the shifts that are there:
    the name of each set, and its data name.
    """

    read: Callable[[Path, str], ImageSet]
    parts: tuple[str, ...] = ("all",)
    splits: Mapping[str, str] = field(default_factory=dict)
    shifts: Callable[[Path], Iterator[tuple[str, str]]] | None = None


def read_family(spec: str, *, split: str) -> ImageSet:
    """Reads the images of a data name such as ``imagenet:PATH`` or ``objectnet:1000-way:PATH``.

    Where the name has no part, it is that of ``split``: train, validation, test or shift. Raises an InputError if the
    family has no such split, or if the data are not in the layout in which they are distributed.
    """
    kind, part, path = split_family_name(spec)
    family = FAMILIES[kind]
    if not path:
        raise InputError(f"{spec!r} names no folder. Write {kind}:PATH.")
    if not part and split not in family.splits and split in ("train", "validation"):
        way = "omit it, and a part of the training images is held out" if split == "validation" else "name other data"
        raise InputError(f"{kind} has no {split} images of its own; {way}.")
    return family.read(expanded(path), part or family.splits.get(split, family.parts[0]))


def load_family(spec: str, classes: ClassSpace | None, *, split: str, partial: bool) -> ImageSet:
    """Does what ``read_family`` does; with ``classes``, the images are labelled in that space by class id.

    Raises an InputError if the images have a class that ``classes`` lacks or, unless ``partial``, if they lack one.
    """
    images = read_family(spec, split=split)
    if classes is None:
        return images
    if not partial:
        classes.require_all(images.classes.ids, spec, "Restore their folders; only a shift may lack some.")
    if partial and images.protocol is None and len(images.classes) < len(classes):
        images = replace(images, protocol=protocol_of(images.classes.ids))
    return images.relabelled(classes)


def split_family_name(spec: str) -> tuple[str, str, str]:
    """The family, the part (empty where none is named) and the path of a data name.

    >>> split_family_name("objectnet:masked:data/objectnet-1.0")
    ('objectnet', 'masked', 'data/objectnet-1.0')
    """
    kind, _, rest = spec.partition(":")
    head, colon, path = rest.partition(":")
    return (kind, head, path) if colon and head in FAMILIES[kind].parts else (kind, "", rest)


def is_family(spec: str) -> bool:
    """Whether a data name is that of a public family, whose classes are known to be all of the reference's or some.

    >>> is_family("imagenet-r:data"), is_family("folder:data")
    (True, False)
    """
    return spec.partition(":")[0] in FAMILIES


def family_section(name: str) -> dict[str, Any] | None:
    """The reference and the shifts of a family's suite, such as ``imagenet:PATH``, in the form of a run file.

    Returns None if the name is that of no family. Raises an InputError if the family is no suite.
    """
    kind, _, path = name.partition(":")
    if not is_family(name) or not path:
        return None
    family = FAMILIES[kind]
    if family.shifts is None:
        suites = [known for known, other in FAMILIES.items() if other.shifts is not None]
        raise InputError(
            f"{kind} is no suite, since it has no training images and shifts of its own. {nearest(kind, suites)} "
            f"It can be a shift: {kind}:PATH."
        )
    splits = {"train": "train", "validation": None, "test": "test", **family.splits}
    parts = {split: part for split, part in splits.items() if split != SHIFT}
    reference = {split: part and f"{kind}:{part}:{path}" for split, part in parts.items()}
    shifts = {
        shift: {"data": data, "kind": _kind(data), "partial": True} for shift, data in family.shifts(expanded(path))
    }
    return {"name": kind, "reference": {"name": _set_name(kind, path), **reference}, "shifts": shifts}


def _kind(data: str) -> str:
    return "synthetic" if data.partition(":")[0] in _SYNTHETIC else "natural"


def _set_name(kind: str, path: str) -> str:
    return _as_set(Path(path).name) if kind == "domains" else kind


def _as_set(name: str) -> str:
    return name.strip().replace(" ", "_")


def _imagenet_shifts(root: Path) -> Iterator[tuple[str, str]]:
    """The shifts beside the folder ``imagenet``, under the names that their archives unpack to."""
    for variant in imagenet.V2_VARIANTS:
        if (folder := root / f"imagenetv2-{variant}-format-val").is_dir():
            yield f"imagenet-v2-{variant}", f"imagenet-v2:{variant}:{folder}"
    places = {
        "imagenet-r": ("imagenet-r:{}", "imagenet-r"),
        "imagenet-sketch": ("imagenet-sketch:{}", "sketch"),
        "imagenet-a": ("imagenet-a:{}", "imagenet-a"),
        "objectnet": ("objectnet:113-way:{}", "objectnet-1.0"),
        "imagenet-9": ("imagenet-9:{}", "bg_challenge"),
        "imagenet-c": ("imagenet-c:main:{}", "imagenet-c"),
    }
    for name, (data, folder_name) in places.items():
        if (folder := root / folder_name).is_dir():
            yield name, data.format(folder)


def _cifar10_shifts(root: Path) -> Iterator[tuple[str, str]]:
    if (root / "CIFAR-10.1").is_dir():
        yield "cifar10.1", f"cifar10.1:v6:{root}"
    if (root / "CIFAR-10.2").is_dir():
        yield "cifar10.2", f"cifar10.2:test:{root}"
    if (root / "CIFAR-10-C").is_dir():
        yield "cifar10-c", f"cifar10-c:main:{root}"


def _cifar100_shifts(root: Path) -> Iterator[tuple[str, str]]:
    if (root / "CIFAR-100-C").is_dir():
        yield "cifar100-c", f"cifar100-c:main:{root}"


def _wilds_shifts(family: str) -> Callable[[Path], Iterator[tuple[str, str]]]:
    return lambda root: iter([("ood", f"{family}:test:{root}")])


def _domain_shifts(root: Path) -> Iterator[tuple[str, str]]:
    return ((_as_set(folder.name), f"domains:all:{folder}") for folder in domains.sibling_domains(root))


def _no_shifts(_: Path) -> Iterator[tuple[str, str]]:
    return iter(())


_SYNTHETIC = ("imagenet-c", "imagenet-9", "cifar10-c", "cifar100-c")
_TRAIN_TEST = {"train": "train", "test": "test", SHIFT: "test"}
_WILDS = {"train": "train", "validation": "id_val", "test": "id_test", SHIFT: "test"}
_CORRUPTIONS = tuple(corruptions.PARTS)

FAMILIES: Mapping[str, Family] = {
    "imagenet": Family(
        imagenet.read_imagenet,
        ("val", "train"),
        {"train": "train", "test": "val", SHIFT: "val"},
        _imagenet_shifts,
    ),
    "imagenet-v2": Family(imagenet.read_imagenet_v2, imagenet.V2_VARIANTS),
    "imagenet-r": Family(imagenet.read_imagenet_r),
    "imagenet-sketch": Family(imagenet.read_imagenet_sketch),
    "imagenet-a": Family(imagenet.read_imagenet_a),
    "objectnet": Family(objectnet.read_objectnet, objectnet.PROTOCOLS),
    "imagenet-c": Family(corruptions.read_imagenet_c, _CORRUPTIONS),
    "imagenet-9": Family(backgrounds.read_imagenet_9),
    "cifar10": Family(cifar.read_cifar10, ("test", "train"), _TRAIN_TEST, _cifar10_shifts),
    "cifar10.1": Family(cifar.read_cifar10_1, ("v6", "v4")),
    "cifar10.2": Family(cifar.read_cifar10_2, ("test", "train"), _TRAIN_TEST),
    "cifar10-c": Family(cifar.read_cifar10_c, _CORRUPTIONS),
    "cifar100": Family(cifar.read_cifar100, ("test", "train"), _TRAIN_TEST, _cifar100_shifts),
    "cifar100-c": Family(cifar.read_cifar100_c, _CORRUPTIONS),
    "cars": Family(torchvision.read_cars, ("test", "train"), _TRAIN_TEST, _no_shifts),
    "dtd": Family(
        torchvision.read_dtd,
        ("test", "train", "val"),
        {**_TRAIN_TEST, "validation": "val"},
        _no_shifts,
    ),
    "sun397": Family(torchvision.read_sun397, ("test", "train", "all"), _TRAIN_TEST, _no_shifts),
    "food101": Family(torchvision.read_food101, ("test", "train"), _TRAIN_TEST, _no_shifts),
    "iwildcam": Family(wilds.read_iwildcam, wilds.PARTS, _WILDS, _wilds_shifts("iwildcam")),
    "fmow": Family(wilds.read_fmow, wilds.PARTS, _WILDS, _wilds_shifts("fmow")),
    "camelyon17": Family(
        wilds.read_camelyon17,
        wilds.CAMELYON_PARTS,
        {"train": "train", "test": "id_val", SHIFT: "test"},
        _wilds_shifts("camelyon17"),
    ),
    "domains": Family(
        domains.read_domain,
        domains.PARTS,
        {"train": "train", "test": "test", SHIFT: "all"},
        _domain_shifts,
    ),
}
