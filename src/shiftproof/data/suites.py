"""Shift suites: one reference (train, validation, test) and its shifts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shiftproof.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from shiftproof.data.decoding import Conversions
from shiftproof.data.emoji.drawings import EMOJI_ATTRIBUTION, RENDITIONS, concepts
from shiftproof.data.emoji.sets import EMOJI_SUITES, belongs, emoji_set
from shiftproof.data.families.registry import FAMILIES, SHIFT, family_section, is_family, load_family
from shiftproof.data.formats.registry import FORMATS
from shiftproof.data.held_out import hold_out
from shiftproof.data.labels import ClassSpace
from shiftproof.data.paths import require_known_kind
from shiftproof.data.readable import require_readable, without_undecodable
from shiftproof.data.reading import ReadSettings
from shiftproof.data.sets import ImageSet, load_set, require_set, warn_of_missing_classes
from shiftproof.data.solar_cells import CELL_ATTRIBUTION, CELL_CLASSES, SOLAR_CELLS, cell_set
from shiftproof.errors import InputError, refuse_path, require_choice, require_name
from shiftproof.records.codec import to_json
from shiftproof.records.runs import HeldOutRecord
from shiftproof.seeding import child_generator

VALIDATION = "validation"
SHIFT_KINDS = ("natural", "synthetic")
# The embedded suites, each with the attribution that a copy of its pictures must carry.
ATTRIBUTIONS = {**dict.fromkeys(EMOJI_SUITES, EMOJI_ATTRIBUTION), SOLAR_CELLS: CELL_ATTRIBUTION}
_HELD_OUT_SEED = 20260  # seeds every held-out view and corruption; the run's seed changes the training views only
_TRAIN_VIEWS, _VALIDATION_VIEWS, _TEST_VIEWS, _CORRUPTED_VIEWS = 5, 4, 8, 2
_CORRUPTED_SEVERITY = 3


@dataclass(frozen=True)
class Shift:
    """One set under distribution shift; ``kind`` is "natural" or "synthetic".

    Raises an InputError for another kind, or for a name that cannot name a file.
    """

    name: str
    kind: str
    data: ImageSet

    def __post_init__(self) -> None:
        require_choice("shift kind", self.kind, SHIFT_KINDS)
        _require_set_name(self.name)


@dataclass(frozen=True)
class Reference:
    """The data to fine-tune on and its held-out splits, under one name; an InputError refuses unsuitable names.

    ``held_out`` says how the validation split was drawn if it was held out of the training images.
    """

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    held_out: HeldOutRecord | None = None

    def __post_init__(self) -> None:
        _require_set_name(self.name)

    @property
    def provenance(self) -> dict[str, Any]:
        """What a classifier that is trained on the reference records about it."""
        return {} if self.held_out is None else {"validation": to_json(self.held_out)}


@dataclass(frozen=True)
class ShiftSuite:
    """A reference and its shifts, all labelled in one class space; an InputError refuses two sets of one name.

    ``views_by_seed`` means that another seed draws other training views of the same classes and leaves the held-out
    sets as they are, so that the views of several seeds can be joined.
    """

    name: str
    classes: ClassSpace
    reference: Reference
    shifts: tuple[Shift, ...]
    views_by_seed: bool = False

    def __post_init__(self) -> None:
        names = [self.reference.name, *(shift.name for shift in self.shifts)]
        if len({VALIDATION, *names}) <= len(names):
            raise InputError(f"the suite's sets {names} must have different names, other than {VALIDATION!r}.")

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{split} {len(getattr(self.reference, split)):,}" for split in ("train", "validation", "test")
        )
        shifts = ", ".join(f"{shift.name} {len(shift.data):,}" for shift in self.shifts)
        sets = f"{self.reference.name}: {parts}; shifts: {shifts or 'none'}"
        return f"ShiftSuite({self.name!r}, {len(self.classes)} classes; {sets})"

    @property
    def test_sets(self) -> dict[str, ImageSet]:
        """The reference's test split and every shift, by name."""
        return {self.reference.name: self.reference.test, **{shift.name: shift.data for shift in self.shifts}}

    @property
    def conversion_counters(self) -> tuple[Conversions, ...]:
        """What counts the converted pictures of each set, in the order of the sets."""
        reference = self.reference
        sets = (reference.train, reference.validation, *self.test_sets.values())
        return tuple(counter for images in sets for counter in images.conversions)

    def conversions(self) -> dict[str, dict[str, int]]:
        """How many of the pictures read so far had to be converted to 8-bit RGB: by data name, then by conversion."""
        return {counter.name: counts for counter in self.conversion_counters if (counts := counter.counts())}

    def require_readable(self) -> None:
        """Raises an InputError unless all files of all sets exist and one sample of each can be decoded."""
        reference = self.reference
        own_sets = [("train", reference.train), (VALIDATION, reference.validation)]
        require_readable([*own_sets, *self.test_sets.items()])

    def limited(self, images: int | None) -> ShiftSuite:
        """The same suite with at most ``images`` images in every held-out set, drawn with a fixed seed; None is all."""
        if images is None:
            return self
        validation, test = (_some(part, images) for part in (self.reference.validation, self.reference.test))
        shifts = tuple(replace(shift, data=_some(shift.data, images)) for shift in self.shifts)
        return replace(self, reference=replace(self.reference, validation=validation, test=test), shifts=shifts)

    def without_undecodable(self) -> ShiftSuite:
        """The same suite without the pictures that cannot be decoded (``readable.without_undecodable``)."""
        return self._with_each(without_undecodable)

    def skipped(self) -> dict[str, int]:
        """How many pictures were left out because they cannot be decoded, by data name."""
        sets = (self.reference.train, self.reference.validation, *self.test_sets.values())
        return {images.name: images.skipped for images in sets if images.skipped}

    def read_with(self, settings: ReadSettings) -> ShiftSuite:
        """The same suite, whose picture files are read as ``settings`` say, e.g. through a cache."""
        return self._with_each(lambda images: images.read_with(settings))

    def relabelled(self, classes: ClassSpace) -> ShiftSuite:
        """The same suite in another class space, matched by class id; an InputError refuses one that lacks a class."""
        if classes.ids == self.classes.ids:
            return self
        return replace(self._with_each(lambda images: images.relabelled(classes)), classes=classes)

    def _with_each(self, change: Callable[[ImageSet], ImageSet]) -> ShiftSuite:
        reference = self.reference
        train, validation, test = map(change, (reference.train, reference.validation, reference.test))
        shifts = tuple(replace(shift, data=change(shift.data)) for shift in self.shifts)
        return replace(self, reference=replace(reference, train=train, validation=validation, test=test), shifts=shifts)


def require_suite(suite: object) -> None:
    """Raises an InputError for a path or a name in place of a suite."""
    refuse_path("suite", suite, "a suite, e.g. load_suite('emoji') or own_suite(...)")


def load_suite(name: str, *, seed: int = 0) -> ShiftSuite:
    """An embedded suite, or that of a public family such as ``imagenet:PATH``, with its shifts at that path.

    Embedded are ``emoji`` (the task), ``emoji-development`` (for tuning) and its four folds, and ``solar-cells``.
    ``seed`` changes the training views of emoji only; the held-out views, and the split of the solar cells, are always
    the same. Of a family without validation images, it draws those that are held out. Raises an InputError for an
    unknown name, or if data cannot be read; reading the images of emoji raises one if the packages that render them are
    not installed, loading ``solar-cells`` if its package is not.

    >>> suite = load_suite("emoji")
    >>> len(suite.classes), [shift.name for shift in suite.shifts][:4]
    (267, ['sketch', 'painting', 'monochrome', 'clutter'])
    """
    require_name("name", name, "emoji")
    if section := family_section(name):
        return own_suite(section["reference"], section["shifts"], name=section["name"], seed=seed)
    _require_embedded(name)
    return _solar_cells() if name == SOLAR_CELLS else _emoji(name, seed)


def _solar_cells() -> ShiftSuite:
    test = cell_set("test")
    synthetic = [corrupted(test, corruption, _CORRUPTED_SEVERITY) for corruption in CORRUPTIONS]
    reference = Reference("monocrystalline", cell_set("train"), cell_set("validation"), test)
    natural = Shift("polycrystalline", "natural", cell_set("polycrystalline"))
    return ShiftSuite(SOLAR_CELLS, CELL_CLASSES, reference, (natural, *synthetic))


def _emoji(name: str, seed: int) -> ShiftSuite:
    positions = [i for i, concept in enumerate(concepts()) if belongs(concept, name)]
    chosen = [concepts()[i] for i in positions]
    names = tuple(concept.name for concept in chosen)
    classes = ClassSpace(tuple(n.replace(" ", "_") for n in names), names)

    def view(split: str, views: int, rendition: str = "colour", background: str = "white") -> ImageSet:
        view_seed = seed if split == "train" else _HELD_OUT_SEED
        return emoji_set(split, name, classes, positions, views, rendition, background, view_seed)

    test = view("test", _TEST_VIEWS)
    natural = [Shift(r, "natural", view(r, _TEST_VIEWS, r)) for r in RENDITIONS if r != "colour"]
    natural.append(Shift("clutter", "natural", view("clutter", _TEST_VIEWS, background="busy")))
    few = test.subset([i for i in range(len(test)) if i % _TEST_VIEWS < _CORRUPTED_VIEWS])
    synthetic = [corrupted(few, corruption, _CORRUPTED_SEVERITY) for corruption in CORRUPTIONS]
    reference = Reference("colour", view("train", _TRAIN_VIEWS), view("validation", _VALIDATION_VIEWS), test)
    return ShiftSuite(name, classes, reference, (*natural, *synthetic), views_by_seed=True)


def load_test_sets(name: str, classes: ClassSpace) -> tuple[str, dict[str, ImageSet]]:
    """The name of a suite's reference, and the test sets of the suite by name, labelled in a class space.

    The training images of a public family need not be there. Errors are those of ``load_suite``.
    """
    if (section := family_section(name)) is None:
        suite = load_suite(name).relabelled(classes)
        return suite.reference.name, suite.test_sets
    reference = section["reference"]
    sets = {reference["name"]: load_data(_required(reference, "test"), classes, partial=True)}
    return reference["name"], sets | {
        shift: _load_shift(shift, entry, classes).data for shift, entry in section["shifts"].items()
    }


def own_suite(
    reference: Mapping[str, str | None],
    shifts: Mapping[str, Mapping[str, object]],
    *,
    name: str = "own",
    seed: int = 0,
) -> ShiftSuite:
    """A suite of your own data.

    ``reference`` maps ``train``, ``test`` and, optionally, ``validation`` to data names. Without ``validation``, a
    fifth of the training images of every class, drawn with ``seed``, is held out for it, in whole groups if the images
    have groups. Its ``name`` is "reference" unless given. ``shifts`` maps each name to
    ``{"data": NAME, "kind": "natural" | "synthetic", "partial": bool}``. A shift may lack classes; a warning names them
    unless it is ``partial``.

    Raises an InputError if a set cannot be read, if its classes do not match those of ``train``, or if there are fewer
    than two classes.
    """
    train = load_data(_required(reference, "train"), split="train", seed=seed)
    classes = train.classes
    if len(classes) < 2:
        raise InputError(
            f"{train.name} has the one class {classes.ids[0]!r}; a classifier needs two. "
            "A folder must look like class/image.jpg."
        )
    held_out = None
    if named := reference.get("validation"):
        validation = load_data(named, classes, split="validation")
    else:
        train, validation, held_out = hold_out(train, seed=seed)
    test = load_data(_required(reference, "test"), classes)
    loaded = [_load_shift(shift, entry, classes) for shift, entry in shifts.items()]
    parts = Reference(reference.get("name") or "reference", train, validation, test, held_out)
    return ShiftSuite(name, classes, parts, tuple(loaded))


def _load_shift(name: str, entry: Mapping[str, object], classes: ClassSpace) -> Shift:
    images = load_data(str(entry["data"]), classes, split=SHIFT, partial=True)
    if not entry.get("partial", False) and not is_family(str(entry["data"])):
        warn_of_missing_classes(images, name)
    return Shift(name, str(entry.get("kind", "natural")), images)


def load_data(
    spec: str, classes: ClassSpace | None = None, *, split: str = "test", seed: int = 0, partial: bool = False
) -> ImageSet:
    """Loads one labelled set by its data name.

    The name is ``folder:PATH``, ``csv:PATH``, ``wds:PATH``, ``hf:NAME`` or ``hf:PATH``, that of a public family such as
    ``imagenet:PATH`` (docs/data-sets.md), that of an embedded suite such as ``emoji``, or
    ``corrupted:NAME:SEVERITY:DATA``. ``split`` says which split to load of data that have several: train, validation,
    test or shift, which is the test split where the two do not differ. ``seed`` changes the training views of an
    embedded suite. With ``classes``, labels are matched to that space by class id.

    Raises an InputError if the name is unknown, if the data cannot be read, if it has a class that ``classes`` lacks
    or, unless ``partial``, if it lacks one of them.
    """
    require_name("spec", spec, "folder:PATH")
    kind, _, rest = spec.partition(":")
    require_known_kind("data name", spec, kind, [*FORMATS, *FAMILIES, "corrupted", *ATTRIBUTIONS])
    if kind == "corrupted":
        corruption, severity, data = _split_corrupted(spec, rest)
        return corrupted(load_data(data, classes, split=split, seed=seed, partial=partial), corruption, severity).data
    if kind in ATTRIBUTIONS:
        if rest:
            raise InputError(f"{spec!r} has something after {kind!r}; the name must stand alone.")
        reference = load_suite(kind, seed=seed).reference
        images: ImageSet = reference.test if split == SHIFT else getattr(reference, split)
        return images if classes is None else images.relabelled(classes)
    if is_family(spec):
        return load_family(spec, classes, split=split, partial=partial)
    return load_set(spec, classes, split=split, partial=partial)


def corrupted(images: ImageSet, corruption: str, severity: int) -> Shift:
    """A synthetic shift: the samples of a set with one of the corruptions of ``corrupt``, at a severity of 1 to 5.

    Each sample's random draws depend on its id only. Raises an InputError for an unknown corruption; an unknown
    severity raises one when an image is read.
    """
    require_set(images)
    require_choice("corruption", corruption, CORRUPTIONS)
    name = f"{corruption}-{severity}"

    def change(i: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return corrupt(pixels, corruption, severity, child_generator(_HELD_OUT_SEED, name, images.ids[i]))

    return Shift(name, "synthetic", images.mapped(change, name))


def _require_embedded(name: str) -> None:
    """Raises an InputError unless a suite of this name is embedded; a path or data name gets a hint."""
    if name not in ATTRIBUTIONS and (":" in name or "/" in name or Path(name).exists()):
        raise InputError(
            f"the suite {name!r} is neither an embedded one nor that of a family, such as imagenet:PATH "
            f"(docs/data-sets.md). Your own data are a reference with its shifts: a section "
            "`suite: {reference: {train: folder:PATH, test: folder:PATH}}` of a run file, or `own_suite`."
        )
    require_choice("suite", name, ATTRIBUTIONS)


def _some(images: ImageSet, limit: int) -> ImageSet:
    if len(images) <= limit:
        return images
    order = torch.randperm(len(images), generator=child_generator(_HELD_OUT_SEED, "limit", images.name))
    return images.subset(sorted(order[:limit].tolist()))


def _require_set_name(name: str) -> None:
    """Raises an InputError for a name that cannot be part of a file's name."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise InputError(
            f"the set name {name!r} must consist of letters, digits and . _ + -, and not begin with a dot or sign."
        )


def _required(reference: Mapping[str, str | None], split: str) -> str:
    value = reference.get(split)
    if not value:
        raise InputError(f"the suite's reference has no {split} data. Name it, e.g. {split}: folder:PATH.")
    return value


def _split_corrupted(spec: str, rest: str) -> tuple[str, int, str]:
    parts = rest.split(":", 2)
    if len(parts) < 3:
        raise InputError(f"{spec!r} must look like corrupted:NAME:SEVERITY:DATA, e.g. corrupted:noise:3:folder:PATH.")
    if parts[1] not in (severities := [str(severity) for severity in SEVERITIES]):
        raise InputError(f"{spec!r} has the severity {parts[1]!r}; it must be one of {', '.join(severities)}.")
    return parts[0], int(parts[1]), parts[2]
