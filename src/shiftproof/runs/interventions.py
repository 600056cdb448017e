"""Diagnoses that change the images: pasted windows and exchanged backgrounds, for any models and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shiftproof.data.labels import ClassSpace
from shiftproof.data.sets import ImageSet, joined, spread_over_classes, with_masks
from shiftproof.data.suites import Reference, ShiftSuite, load_data, load_suite
from shiftproof.diagnosis.backgrounds import measure_backgrounds
from shiftproof.diagnosis.baselines import require_trained_with, train_from_scratch
from shiftproof.diagnosis.strong_edge import WindowMeasurements, measure_windows, strong_edge_study, window_examples
from shiftproof.diagnosis.windows import Window, WindowSettings
from shiftproof.errors import InputError, require_at_least, require_choice
from shiftproof.finetuning.loop import finetune
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import load_clip
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.models.zero_shot import zero_shot_classifier
from shiftproof.records.backgrounds import BackgroundStudy
from shiftproof.records.codec import document
from shiftproof.records.windows import StrongEdgeStudy
from shiftproof.report.figures import save_figure
from shiftproof.report.windows import window_figure
from shiftproof.runs.directory import INTERVENTION, InterventionDirectory, claim
from shiftproof.runs.starts import HEADS, OWN, ZERO_SHOT, StartSettings, build_named_start
from shiftproof.storage import write_atomically, write_json

# The study trains networks without mixing, with hard edges and with soft edges.
STUDY_MIXINGS = ("none", "cutmix", "smoothmix-square", "smoothmix-circle")
STUDY_STARTS = ("scratch", "tuned")
# Training from scratch needs more than five views of a class, so it has an eighth of the classes, in eight draws each.
STUDY_CLASSES, STUDY_DRAWS = 8, 8
SCRATCH_SETTINGS = FinetuneSettings(epochs=22, lr=1e-3, batch_size=32, warmup_steps=100, weight_decay=0.05)
STUDY_PROBABILITY = 0.5  # the probability that a sample is mixed
TUNED_SETTINGS = FinetuneSettings(epochs=12, lr=2e-3, batch_size=128, warmup_steps=20)
_EXAMPLES = 4
_EXAMPLE_WINDOW = Window("noise", 0.0, 0.35, "away")
_OTHER_OUT = "Choose another `out`, or add `overwrite=True` to train it again."


@dataclass(frozen=True)
class DiagnosisFile:
    """The request to diagnose some models on some images.

    ``classifiers`` are directories, ``models`` names; ``head`` is that of the named models, as in a run file, and
    ``random_weights`` allows a name without a tag. A network's own head keeps all of its classes. Without models, the
    study trains networks on ``suite``. The images are those of ``data`` (a data name) or else those of the suite's
    ``shift`` or, without one, of the test split of its reference; ``masks`` is a parallel folder of object masks.
    ``images`` is the number of images, spread over the classes.
    """

    classifiers: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    head: str | None = None
    prompts: str = "photo"
    suite: str = "emoji"
    shift: str | None = None
    data: str | None = None
    masks: Path | None = None
    images: int = 402
    seed: int = 0
    device: str = "auto"
    random_weights: bool = False

    def __post_init__(self) -> None:
        require_choice("head", self.head or ZERO_SHOT, HEADS)
        require_at_least("the number of images", self.images, 2)
        if self.data is not None and self.shift is not None:
            raise InputError("`shift` names images of a suite, and `data` names other images. Give one of the two.")


def run_strong_edge(
    request: DiagnosisFile, out: str | Path, *, settings: WindowSettings | None = None, overwrite: bool = False
) -> StrongEdgeStudy:
    """Measures models under pasted windows; writes ``strong_edge.json``, ``measurements.npz`` and ``figures/``.

    Without models, networks are trained first and saved in ``networks/``; those that an interrupted study saved there
    are not trained again. Raises an InputError if the request is inconsistent or ``out`` cannot be claimed.
    """
    out = Path(out)
    device = resolve_device(request.device)
    trains_networks = not (request.classifiers or request.models)
    if trains_networks and (request.data or request.shift):
        raise InputError("`data` and `shift` need a model to diagnose. Name classifiers, or models with `models`.")
    suite = _study_suite(request.suite, request.seed) if trains_networks else None
    images = _images(request, suite)
    models = {} if trains_networks else _models(request, images)
    directory = InterventionDirectory(out)
    with claim(out, INTERVENTION, overwrite=overwrite):
        models = _study_networks(suite, request, directory, device) if suite else models
        measured = {
            name: measure_windows(
                model,
                images.relabelled(model.classes),
                settings or WindowSettings(),
                seed=request.seed,
                device=device,
                stage=f"windows {name}",
            )
            for name, model in models.items()
        }
        pairs = _study_pairs() if trains_networks else [(name, next(iter(models))) for name in list(models)[1:]]
        study = strong_edge_study(measured, pairs, set_name=images.name, seed=request.seed)
        _save_measurements(measured, images, directory.measurements)
        for name, members in _figures(tuple(models), trained=trains_networks).items():
            chosen = {member: models[member] for member in members}
            window = _EXAMPLE_WINDOW if images.mask else replace(_EXAMPLE_WINDOW, place="anywhere")
            examples = window_examples(chosen, images, window, _EXAMPLES, seed=request.seed, device=device)
            save_figure(window_figure(examples, members), directory.figure(name))
        write_json(directory.strong_edge, document(study))
        return study


def run_backgrounds(request: DiagnosisFile, out: str | Path, *, overwrite: bool = False) -> BackgroundStudy:
    """Measures models on objects pasted onto other backgrounds; writes ``backgrounds.json``.

    Raises an InputError if there is no model, if the images have no masks, or if ``out`` cannot be claimed.
    """
    out = Path(out)
    if not (request.classifiers or request.models):
        raise InputError("there is no model to diagnose. Name classifiers, or models with `models`.")
    images, device = _images(request), resolve_device(request.device)
    models = _models(request, images)
    images = images.relabelled(next(iter(models.values())).classes)
    with claim(out, INTERVENTION, overwrite=overwrite):
        study = measure_backgrounds(models, images, seed=request.seed, device=device)
        write_json(InterventionDirectory(out).backgrounds, document(study))
        return study


def _images(request: DiagnosisFile, suite: ShiftSuite | None = None) -> ImageSet:
    """Draws the requested number of images, spread evenly over the classes."""
    if request.data:
        images = load_data(request.data)
    else:
        suite = suite or load_suite(request.suite, seed=request.seed)
        shift = (
            suite.reference.name if request.shift is None else require_choice("shift", request.shift, suite.test_sets)
        )
        shown = "the reference" if request.shift is None else shift
        images = replace(suite.test_sets[shift], name=f"{shown} of {suite.name}")
    images = images if request.masks is None else with_masks(images, request.masks)
    return spread_over_classes(images, request.images, seed=request.seed)


def _models(request: DiagnosisFile, images: ImageSet) -> dict[str, Classifier]:
    """Loads the models and classifier directories by short names; raises an InputError if one lacks a class."""
    models: dict[str, Classifier] = {}
    for directory in (path.absolute() for path in request.classifiers):  # "." has no name
        name = directory.name if directory.name not in models else f"{directory.parent.name}-{directory.name}"
        models[name] = load_classifier(directory)
    settings = StartSettings(request.head, request.prompts, request.seed, request.random_weights, request.device)
    reference = None if request.data else load_suite(request.suite, seed=request.seed).reference
    for name in request.models:
        models[name] = build_named_start(name, None if request.head == OWN else images.classes, settings, reference)
    if len(models) < len(request.classifiers) + len(request.models):
        raise InputError("two of the models have the same name. Name every model once, or rename a directory.")
    for model in models.values():
        images.relabelled(model.classes)
    return models


def _study_suite(name: str, seed: int) -> ShiftSuite:
    """Loads every eighth class of an embedded suite, with the training views of eight seeds if it has any."""
    draws = [load_suite(name, seed=STUDY_DRAWS * seed)]
    if draws[0].views_by_seed:
        draws += [load_suite(name, seed=STUDY_DRAWS * seed + number) for number in range(1, STUDY_DRAWS)]
    all_classes = draws[0].classes
    classes = ClassSpace(all_classes.ids[::STUDY_CLASSES], all_classes.names[::STUDY_CLASSES])
    reference = draws[0].reference
    train = joined([draw.reference.train.of_classes(classes) for draw in draws], "train")
    parts = Reference(
        reference.name, train, reference.validation.of_classes(classes), reference.test.of_classes(classes)
    )
    return ShiftSuite(f"{name} (every {STUDY_CLASSES}th class)", classes, parts, ())


def _study_networks(
    suite: ShiftSuite, request: DiagnosisFile, directory: InterventionDirectory, device: str
) -> dict[str, Classifier]:
    """Trains the tiny network with each mixing, from scratch on the reference and from its zero-shot start."""
    start = zero_shot_classifier(load_clip("tiny"), suite.classes)
    trainings: dict[str, Callable[[FinetuneSettings], Classifier]] = {
        "scratch": lambda settings: train_from_scratch(start, suite, settings, seed=request.seed, device=device),
        "tuned": lambda settings: finetune(start, suite, settings, seed=request.seed, device=device),
    }
    networks = {}
    for (origin, train), settings in zip(trainings.items(), (SCRATCH_SETTINGS, TUNED_SETTINGS), strict=True):
        for mixing in STUDY_MIXINGS:
            folder = directory.network(f"{origin}-{mixing}")
            probability = None if mixing == "none" else STUDY_PROBABILITY
            mixed = replace(settings, mixing=mixing, mixing_probability=probability)
            if not (folder / "classifier.json").is_file():
                save_classifier(train(mixed), folder, overwrite=True)
            networks[folder.name] = load_classifier(folder)
            require_trained_with(networks[folder.name], suite.classes, mixed, request.seed, folder, _OTHER_OUT)
    return networks


def _study_pairs() -> list[tuple[str, str]]:
    """Pairs the networks with hard edges with those with soft edges and without mixing, for each start."""
    return [
        (f"{start}-cutmix", f"{start}-{other}")
        for start in STUDY_STARTS
        for other in ("smoothmix-square", "smoothmix-circle", "none")
    ]


def _figures(models: tuple[str, ...], *, trained: bool) -> dict[str, tuple[str, ...]]:
    """Returns the figures' names and the models in each."""
    if not trained:
        return {"strong-edge": models}
    return {f"strong-edge-{start}": tuple(m for m in models if m.startswith(start)) for start in STUDY_STARTS}


def _save_measurements(measured: Mapping[str, WindowMeasurements], images: ImageSet, path: Path) -> None:
    """Writes every measure of every image, as ``MODEL|WINDOW|MEASURE`` (N,), with the images' ids and class ids."""
    arrays: dict[str, Any] = {
        "ids": np.array(images.ids),
        "classes": np.array([images.classes.ids[label] for label in images.labels]),
    }
    for model, measurements in measured.items():
        for window, measures in measurements.values.items():
            arrays |= {f"{model}|{window}|{name}": values.astype(np.float32) for name, values in measures.items()}
    write_atomically(path, lambda temporary: np.savez_compressed(temporary, **arrays))
