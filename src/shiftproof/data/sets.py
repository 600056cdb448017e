"""Labelled image sets from arrays, class folders or a CSV file; an image is decoded only when it is read."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from shiftproof.data.decoding import Conversions, decode_mask
from shiftproof.data.formats.registry import FORMATS
from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import Preprocessing
from shiftproof.data.paths import require_folder, require_known_kind
from shiftproof.data.pictures import SkippedFiles, find_pictures, require_pictures
from shiftproof.data.protocols import Projection, Protocol, protocol_of
from shiftproof.data.reading import PictureReader, ReadSettings
from shiftproof.data.sources import Source
from shiftproof.data.spelling import normal_name
from shiftproof.errors import InputError, counted, listed, refuse_path, require_equal_length, require_name
from shiftproof.seeding import child_generator

Result = TypeVar("Result")


@dataclass(frozen=True)
class Clusters:
    """Which samples of a set belong together, so that intervals and tests do not take them for independent.

    ``kind`` says what a cluster is: the ``source_kind`` of the set, a ``group``, or a ``sample`` if every sample stands
    alone. ``names`` (N,) are the clusters' labels, None for ``sample``.
    """

    kind: str
    names: NDArray[np.str_] | None

    @property
    def count(self) -> int | None:
        """The number of clusters, None for ``sample``."""
        return None if self.names is None else len(np.unique(self.names))


@dataclass(frozen=True)
class ImageSet:
    """N labelled images: ``read(i)`` gives the (H, W, 3) uint8 pixels of the i-th.

    ``ids`` are unique and identify the samples in stored predictions; ``labels`` are (N,) positions in
    ``classes``; ``groups``, where given, splits the samples for reporting (into seen and withheld renditions, say).
    ``in_memory`` means that reading costs nothing, so that no threads are needed for it. ``mask(i)``, where given, is
    the (H, W) uint8 coverage of the object in ``read(i)``: 0 is background, 255 is object. ``resized_for`` is the
    preprocessing to which pixels and masks have already been resized, so that this does not happen twice. ``sources``,
    where given, name what each sample is a view of (a ``source_kind``, such as a drawing): views of one source are not
    independent. Where they are the ids, every sample stands alone, whatever its group.
    ``conversions`` count the pictures that were not plain 8-bit RGB, as far as they have been read.
    ``files``, where given, are the files, or the parts of larger files, that the samples are decoded from.
    ``protocol``, where given, is how the predictions on a public set are scored. ``precropped`` means that the pictures
    show what a model's evaluation transform would leave of them, so that it scales them to its size, if need be, and
    does not crop them again. ``skipped`` is the number of pictures that were left out because they cannot be decoded.

    Raises an InputError if there is no image, or if ids and labels differ in number.
    """

    name: str
    classes: ClassSpace
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    read: Callable[[int], NDArray[np.uint8]] = field(repr=False, compare=False)
    groups: tuple[str, ...] | None = None
    in_memory: bool = False
    mask: Callable[[int], NDArray[np.uint8]] | None = field(default=None, repr=False, compare=False)
    resized_for: Preprocessing | None = field(default=None, repr=False, compare=False)
    sources: tuple[str, ...] | None = field(default=None, repr=False)
    conversions: tuple[Conversions, ...] = field(default=(), repr=False, compare=False)
    files: tuple[Source, ...] | None = field(default=None, repr=False, compare=False)
    protocol: Protocol | None = field(default=None, repr=False)
    precropped: bool = field(default=False, repr=False)
    skipped: int = field(default=0, repr=False)
    source_kind: str = field(default="picture", repr=False)

    def __post_init__(self) -> None:
        require_equal_length(f"ids and labels of {self.name}", self.ids, self.labels)
        if not self.ids:
            raise InputError(f"{self.name} holds no image. Check the path.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        extras = [name for name in ("groups", "sources", "mask") if getattr(self, name) is not None]
        with_extras = f", with {', '.join(extras)}" if extras else ""
        return f"ImageSet({self.name!r}, {counted(len(self), 'image')} of {len(self.classes)} classes{with_extras})"

    @property
    def clusters(self) -> Clusters:
        """The sources that the samples are views of if they are known, else the groups, else every sample by itself."""
        if self.sources == self.ids:
            return Clusters("sample", None)
        if self.sources is not None:
            return Clusters(self.source_kind, np.asarray(self.sources))
        if self.groups is not None:
            return Clusters("group", np.asarray(self.groups))
        return Clusters("sample", None)

    @property
    def projection(self) -> Projection | None:
        """How the logits of a model on this set are projected before they are scored; None if they are not."""
        return None if self.protocol is None else self.protocol.projection(self.classes.ids)

    def relabelled(self, classes: ClassSpace) -> ImageSet:
        """The same images, labelled in another class space by class id.

        Raises an InputError if the other space lacks a class that occurs here.
        """
        if classes.ids == self.classes.ids:
            return self
        labels = classes.labels_of([self.classes.ids[label] for label in self.labels], self.name)
        return replace(self, classes=classes, labels=labels)

    def subset(self, positions: Sequence[int]) -> ImageSet:
        """The images at the given positions, in their order."""
        chosen = list(positions)
        read, mask = self.read, self.mask
        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            labels=self.labels[chosen],
            read=read.subset(chosen) if isinstance(read, PictureReader) else lambda i: read(chosen[i]),
            groups=None if self.groups is None else tuple(self.groups[i] for i in chosen),
            mask=None if mask is None else lambda i: mask(chosen[i]),
            sources=None if self.sources is None else tuple(self.sources[i] for i in chosen),
            files=None if self.files is None else tuple(self.files[i] for i in chosen),
        )

    def read_with(self, settings: ReadSettings) -> ImageSet:
        """The same images, whose files are read as ``settings`` say; a set whose pixels are changed has none.

        >>> from shiftproof.data.suites import load_data
        >>> emoji = load_data("emoji")
        >>> emoji.read_with(ReadSettings(cache="pictures")) is emoji  # they are drawn, not read from files
        True
        """
        read = self.read
        return replace(self, read=read.read_with(settings)) if isinstance(read, PictureReader) else self

    def of_classes(self, classes: ClassSpace) -> ImageSet:
        """The images of some of the classes, labelled in their smaller space."""
        wanted, keys = set(classes.keys), self.classes.keys
        return self.subset([i for i, k in enumerate(self.labels) if keys[k] in wanted]).relabelled(classes)

    def mapped(self, change: Callable[[int, NDArray[np.uint8]], NDArray[np.uint8]], name: str) -> ImageSet:
        """The same samples and masks, with the (H, W, 3) pixels that ``change(position, pixels)`` returns."""
        return replace(self, name=name, read=lambda i: change(i, self.read(i)), in_memory=False)


def require_set(images: object, what: str = "images") -> None:
    """Raises an InputError for a path or a data name in place of a set of images."""
    refuse_path(what, images, "a set of images, e.g. load_data('folder:PATH')")


def joined(sets: Sequence[ImageSet], name: str) -> ImageSet:
    """Concatenates sets of one class space; each sample's id is prefixed with the number of its set.

    The result has masks, groups, sources and files if every set has them, and counts as cropped beforehand if every set
    does. Raises an InputError if the class spaces differ.
    """
    classes = sets[0].classes
    if any(part.classes.ids != classes.ids for part in sets):
        raise InputError(f"the parts of {name} are labelled in different class spaces. Relabel them first.")
    places = [(part, i) for part in sets for i in range(len(part))]

    def mask(i: int) -> NDArray[np.uint8]:
        part, position = places[i]
        return require_masks(part)(position)

    return ImageSet(
        name,
        classes,
        tuple(f"{number}/{sample}" for number, part in enumerate(sets) for sample in part.ids),
        np.concatenate([part.labels for part in sets]),
        lambda i: places[i][0].read(places[i][1]),
        in_memory=all(part.in_memory for part in sets),
        mask=mask if all(part.mask for part in sets) else None,
        groups=_concatenated([part.groups for part in sets]),
        sources=_concatenated([part.sources for part in sets]),
        conversions=tuple(dict.fromkeys(conversions for part in sets for conversions in part.conversions)),
        files=_concatenated([part.files for part in sets]),
        precropped=all(part.precropped for part in sets),
        skipped=sum(part.skipped for part in sets),
        source_kind=sets[0].source_kind if len({part.source_kind for part in sets}) == 1 else "picture",
    )


def _concatenated(parts: Sequence[tuple[Result, ...] | None]) -> tuple[Result, ...] | None:
    """All entries in one tuple, or None if any part has none."""
    given = [part for part in parts if part is not None]
    return tuple(entry for part in given for entry in part) if len(given) == len(parts) else None


def samples_digest(images: ImageSet) -> str:
    """A digest of the classes, sample ids and labels of a set; the pixels are not read."""
    digest = hashlib.sha256("\0".join([*images.classes.ids, *images.ids]).encode())
    digest.update(images.labels.tobytes())
    return digest.hexdigest()[:16]


def once(make: Callable[[], Result]) -> Callable[[], Result]:
    """A function that calls ``make`` on its first call and returns that result on every call; it is thread-safe.

    >>> get_list = once(lambda: [])
    >>> get_list() is get_list()
    True
    """
    results: list[Result] = []
    lock = threading.Lock()

    def get() -> Result:
        with lock:
            if not results:
                results.append(make())
        return results[0]

    return get


def array_set(
    name: str,
    classes: ClassSpace,
    ids: Sequence[str],
    labels: NDArray[np.int64],
    pixels: Callable[[], NDArray[np.uint8]],
    groups: Sequence[str] | None = None,
    masks: Callable[[], NDArray[np.uint8]] | None = None,
) -> ImageSet:
    """A set of N images whose pixels are made together when the first of them is read.

    ``labels`` are (N,) positions in ``classes``. ``pixels`` returns the (N, H, W, 3) uint8 pixels, ``masks`` the
    (N, H, W) uint8 coverage of the objects. Raises an InputError if ids and labels differ in number or are none.

    >>> squares = lambda: np.zeros((1, 8, 8, 3), np.uint8)
    >>> array_set("mine", ClassSpace.from_ids(["square"]), ["a"], np.array([0]), squares).read(0).shape
    (8, 8, 3)
    """
    images = once(pixels)
    covers = None if masks is None else once(masks)
    return ImageSet(
        name,
        classes,
        tuple(ids),
        labels,
        lambda i: images()[i],
        None if groups is None else tuple(groups),
        in_memory=True,
        mask=None if covers is None else lambda i: covers()[i],
    )


def load_set(spec: str, classes: ClassSpace | None = None, *, split: str = "test", partial: bool = False) -> ImageSet:
    """Loads a labelled set by its data name.

    The name is ``folder:PATH``, for files ``class/image``; ``csv:PATH``, for a file with the columns ``filepath``,
    ``label`` and, optionally, ``mask`` and ``group``; ``wds:PATH``, for tar shards; or ``hf:NAME`` or ``hf:PATH``, for
    parquet. ``split`` says which split to read of data that have several. With ``classes``, labels are matched to that
    space by class id. Without, the classes are those that occur in the set, sorted or in the order of the data's own
    list, and a warning names classes that may be the same. A mask is a grey image in which the object is white;
    ``with_masks`` adds masks to a folder's images.

    Raises an InputError if the data cannot be read, if it has a class that ``classes`` lacks or, unless ``partial``,
    if it lacks one of ``classes``.
    """
    require_name("spec", spec, "folder:PATH")
    kind, _, path = spec.partition(":")
    require_known_kind("data name", spec, kind, FORMATS)
    listing = FORMATS[kind].read(path, split)
    entries = listing.entries
    class_ids = [normal_name(entry.class_id) for entry in entries]
    if classes is None:
        present = set(class_ids)
        classes = listing.classes.only(present) if listing.classes else ClassSpace.from_ids(sorted(present))
        classes.warn_of_similar(spec)
    labels = classes.labels_of(class_ids, spec)
    if not partial:
        classes.require_all(class_ids, spec, "Add images of them; only a shift may lack some.")
    ids = [entry.sample for entry in entries]
    groups = tuple(normal_name(entry.group) for entry in entries if entry.group is not None)
    images = replace(
        picture_set(spec, classes, ids, labels, [entry.picture for entry in entries]), groups=groups or None
    )
    if partial and len(occurring := np.unique(labels)) < len(classes):
        images = replace(images, protocol=protocol_of([classes.ids[k] for k in occurring]))
    masks = [entry.mask for entry in entries if entry.mask is not None]
    return _masked(images, masks) if masks else images


def picture_set(
    name: str, classes: ClassSpace, ids: Sequence[str], labels: NDArray[np.int64], pictures: Sequence[Source]
) -> ImageSet:
    """A set of N pictures, decoded as ``read_picture`` does; ``labels`` are (N,) positions in ``classes``."""
    conversions, files = Conversions(name), tuple(pictures)
    read = PictureReader.of(files, conversions)
    return ImageSet(name, classes, tuple(ids), labels, read, conversions=(conversions,), files=files)


def warn_of_missing_classes(images: ImageSet, name: str) -> None:
    """Warns of the classes of its space that a set has no image of; its accuracy is over the others."""
    present = set(images.labels.tolist())
    if missing := [label for i, label in enumerate(images.classes.ids) if i not in present]:
        warnings.warn(f"{name} has no image of {listed(missing, 5)}; its accuracy is over the others.", stacklevel=3)


def spread_over_classes(images: ImageSet, count: int, *, seed: int) -> ImageSet:
    """At most ``count`` images drawn with the seed, as even over the classes as possible, in the order of the set."""
    if count >= len(images):
        return images
    order = torch.randperm(len(images), generator=child_generator(seed, "diagnosed images")).numpy()
    class_rank = np.empty(len(images), dtype=np.int64)  # an image's rank within its class, in that order
    for label in np.unique(images.labels):
        of_class = order[images.labels[order] == label]
        class_rank[of_class] = np.arange(len(of_class))
    ranked = order[np.argsort(class_rank[order], kind="stable")]
    return images.subset(sorted(ranked[:count].tolist()))


def unlabelled_set(root: str | Path, classes: ClassSpace) -> ImageSet:
    """Every image under a folder, at any depth: production data whose classes are not known.

    All labels are -1, so the set is of no use for measures that need labels. Raises an InputError if the folder does
    not exist or contains no image.
    """
    root = Path(root)
    require_folder(root, "It must hold the images.")
    skipped = SkippedFiles()
    paths = require_pictures(find_pictures(root, skipped), f"the folder {root}", skipped)
    skipped.warn(str(root))
    ids = [path.relative_to(root).as_posix() for path in paths]
    return picture_set(str(root), classes, ids, np.full(len(paths), -1, dtype=np.int64), paths)


def with_masks(images: ImageSet, root: str | Path) -> ImageSet:
    """The set with object masks from a parallel folder: ``root/CLASS/NAME.png`` for the image ``CLASS/NAME.jpg``.

    A mask is matched by the sample's id without its suffix. It is a grey image of any format, as large as its image, in
    which the object is white. Raises an InputError that names the missing masks; one of another size than its image
    raises an InputError when it is read.
    """
    require_set(images)
    root = Path(root)
    require_folder(root, "It must hold the masks, as root/CLASS/NAME.png.")
    masks: dict[PurePosixPath, Path] = {}
    skipped = SkippedFiles()
    for path in find_pictures(root, skipped):
        sample = _without_suffix(path.relative_to(root).as_posix())
        if sample in masks:
            raise InputError(f"{masks[sample]} and {path} are masks of the same image. Remove one of them.")
        masks[sample] = path
    skipped.warn(str(root))
    if lacking := [name for name in images.ids if _without_suffix(name) not in masks]:
        missing = root / f"{_without_suffix(lacking[0])}.png"
        raise InputError(f"the mask {missing} does not exist. These samples lack theirs: {listed(lacking, 5)}.")
    return _masked(images, [masks[_without_suffix(name)] for name in images.ids])


def require_masks(images: ImageSet) -> Callable[[int], NDArray[np.uint8]]:
    """The set's ``mask`` function; raises an InputError that says how to add masks if it has none.

    >>> from shiftproof.data.suites import load_data
    >>> require_masks(load_data("emoji"))(0).shape
    (64, 64)
    """
    require_set(images)
    if images.mask is None:
        raise InputError(
            f"{images.name} has no object masks, which are needed to tell object and background apart. Give csv: data "
            "a column 'mask', or folder: data a parallel folder of masks with with_masks(images, root). The emoji sets "
            "have masks."
        )
    return images.mask


def _masked(images: ImageSet, paths: Sequence[Path]) -> ImageSet:
    def mask(i: int) -> NDArray[np.uint8]:
        cover, pixels = decode_mask(paths[i]), images.read(i)
        if cover.shape != pixels.shape[:2]:
            raise InputError(
                f"the mask {paths[i]} is {cover.shape[1]} x {cover.shape[0]} pixels, its image {images.ids[i]} "
                f"{pixels.shape[1]} x {pixels.shape[0]}; they must be equal. Redraw the mask in the image's size."
            )
        return cover

    return replace(images, mask=mask)


def _without_suffix(sample: str) -> PurePosixPath:
    return PurePosixPath(normal_name(sample)).with_suffix("")
