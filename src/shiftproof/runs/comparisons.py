"""Comparisons of two classifiers by one diagnosis, on any data, for the commands ``shiftproof diagnose PART A B``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shiftproof.data.labels import ClassSpace
from shiftproof.data.sets import ImageSet, spread_over_classes, unlabelled_set
from shiftproof.data.suites import load_data, load_suite
from shiftproof.diagnosis.evidence import pairs_of
from shiftproof.diagnosis.layers import measure_layers
from shiftproof.diagnosis.movement import measure_movement
from shiftproof.diagnosis.overrides import measure_overrides
from shiftproof.diagnosis.strong_edge import map_examples
from shiftproof.errors import InputError, require_choice
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier
from shiftproof.records.comparisons import (
    ConnectivityRecord,
    FollowedRecord,
    LayersRecord,
    LossRecord,
    MovementRecord,
)
from shiftproof.records.diagnosis import PairRecord
from shiftproof.records.windows import MapExample
from shiftproof.runs.evidence import find_path
from shiftproof.runs.predictions import temporary_logits
from shiftproof.runs.starts import StartSettings, build_named_start
from shiftproof.storage import expanded


@dataclass(frozen=True)
class PairFile:
    """The request to compare some classifiers on some images.

    ``models`` are classifier directories or model names; a named model gets a ``head``, as in a run file, for the
    classes of the first directory or, without one, of the data. ``random_weights`` allows a name without a tag. The
    images are those of ``data`` (a data name), of ``unlabelled`` (a folder of images of unknown classes), of one
    ``shift`` of ``suite``, or of all its test sets; at most ``images`` of each, spread over the classes.
    """

    models: tuple[str, ...]
    suite: str = "emoji"
    shift: str | None = None
    data: str | None = None
    unlabelled: Path | None = None
    images: int | None = None
    prompts: str = "photo"
    head: str | None = None
    seed: int = 0
    device: str = "auto"
    random_weights: bool = False

    def __post_init__(self) -> None:
        if self.data is not None and self.unlabelled is not None:
            raise InputError("`data` and `unlabelled` both name images. Give one of the two.")
        if self.shift is not None and (self.data is not None or self.unlabelled is not None):
            raise InputError(
                "`shift` names images of `suite`, but other images are named as well. Give one of the two."
            )


@dataclass(frozen=True)
class PairAgreement:
    """The result of ``compare_agreement``: every two models on every set, and which of the two a third one follows."""

    pairs: tuple[PairRecord, ...]
    overrides: Mapping[str, FollowedRecord]
    clusters: Mapping[str, str]


def compare_agreement(pair: PairFile) -> PairAgreement:
    """Measures how much two classifiers differ on every set and which of them a third one, if given, follows.

    Labels are not needed. Raises an InputError for a model or data that cannot be loaded.
    """
    device, models = resolve_device(pair.device), _models(pair)
    pairs: list[PairRecord] = []
    overrides, kinds = {}, {}
    for name, images in _sets(pair, next(iter(models.values())).classes).items():
        labels = None if images.labels.min() < 0 else images.labels
        resampled = images.clusters
        kinds[name], clusters = resampled.kind, resampled.names
        with temporary_logits(models, images, device=device) as logits:
            pairs += pairs_of(logits, name, labels, clusters)
            if len(logits) == 3:
                first, second, third = logits.values()
                overrides[name] = measure_overrides(first, second, third, labels, clusters)
    return PairAgreement(tuple(pairs), overrides, kinds)


def compare_layers(
    pair: PairFile, layers: tuple[str, ...] | None = None, *, debiased: bool = False
) -> tuple[LayersRecord, ...]:
    """Measures the CKA between the layers of two classifiers on every set; labels are not needed.

    Raises an InputError for a model or data that cannot be loaded, and for unknown ``layers``.
    """
    device, models = resolve_device(pair.device), _models(pair)
    first, second = models.values()
    return tuple(
        replace(measure_layers(first, second, images, layers=layers, device=device, debiased=debiased), set=name)
        for name, images in _sets(pair, first.classes).items()
    )


def compare_maps(pair: PairFile) -> dict[str, tuple[MapExample, ...]]:
    """Computes the activation maps of the class that each classifier predicts, for every image of every set.

    Raises an InputError for a model or data that cannot be loaded, and for an encoder without maps.
    """
    models = _models(pair)
    sets = _sets(pair, next(iter(models.values())).classes)
    return {name: map_examples(models, images, device=resolve_device(pair.device)) for name, images in sets.items()}


@dataclass(frozen=True)
class PairPath:
    """The result of ``compare_path``: accuracy and loss along the path between two classifiers, set by set."""

    connectivity: tuple[ConnectivityRecord, ...]
    losses: tuple[LossRecord, ...]
    clusters: Mapping[str, str]


def compare_path(pair: PairFile, alphas: int = 11) -> PairPath:
    """Measures, on every set, whether the line between two classifiers' weights has an error barrier.

    Raises an InputError for images without labels, and for a model or data that cannot be loaded.
    """
    if pair.unlabelled is not None:
        raise InputError("the path's accuracy needs labels. Name labelled `data` in place of `unlabelled`.")
    first, second = _models(pair).values()
    sets = _sets(pair, first.classes)
    return PairPath(*find_path(first, second, sets, alphas, device=resolve_device(pair.device)))


def compare_weights(pair: PairFile) -> tuple[MovementRecord, ...]:
    """Measures how far each layer moved between two classifiers, and the cosine with the move to a third one.

    Raises an InputError for a model that cannot be loaded.
    """
    return measure_movement(*(model.state_dict() for model in _models(pair).values()))


def _models(pair: PairFile) -> dict[str, Classifier]:
    """Loads the classifiers by a short name each, with their classes in the order of the first."""
    loaded = {name: load_classifier(name) for name in pair.models if (expanded(name) / "classifier.json").is_file()}
    classes = next((classifier.classes for classifier in loaded.values()), None)
    if classes is None and len(loaded) < len(pair.models):
        classes = _classes_of(pair)
    models: dict[str, Classifier] = {}
    for number, name in enumerate(pair.models, 1):
        if name not in loaded and (os.sep in name or Path(name).exists()) and ":" not in name:
            raise InputError(f"{name} holds no classifier.json. Name a classifier's directory, e.g. RUN/fine_tuned.")
        classifier = loaded.get(name) or _named(pair, name, classes)
        short = Path(name).absolute().name if name in loaded else name
        short = f"{Path(name).absolute().parent.name}-{short}" if short in models and name in loaded else short
        first = next(iter(models.values()), classifier)
        models[short if short not in models else f"{short} ({number})"] = classifier.in_order_of(first.classes)
    return models


def _named(pair: PairFile, name: str, classes: ClassSpace | None) -> Classifier:
    settings = StartSettings(pair.head, pair.prompts, pair.seed, pair.random_weights, pair.device)
    embedded = pair.data is None and pair.unlabelled is None
    reference = load_suite(pair.suite, seed=pair.seed).reference if embedded else None
    return build_named_start(name, classes, settings, reference)


def _classes_of(pair: PairFile) -> ClassSpace | None:
    """The classes of the images, unless they have no labels."""
    if pair.unlabelled is not None:
        return None
    return load_data(pair.data).classes if pair.data else load_suite(pair.suite, seed=pair.seed).classes


def _sets(pair: PairFile, classes: ClassSpace) -> dict[str, ImageSet]:
    """Loads the images by name, labelled in the models' classes."""
    if pair.unlabelled is not None:
        sets = {pair.unlabelled.name: unlabelled_set(pair.unlabelled, classes)}
    elif pair.data:
        sets = {pair.data: load_data(pair.data, classes, partial=True)}
    else:
        sets = load_suite(pair.suite, seed=pair.seed).relabelled(classes).test_sets
        if pair.shift is not None:
            sets = {pair.shift: sets[require_choice("shift", pair.shift, sets)]}
    if pair.images is None:
        return sets
    return {name: spread_over_classes(images, pair.images, seed=pair.seed) for name, images in sets.items()}
