"""What a run file names, loaded and checked: the suite, the start, and the images that ensembles need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shiftproof.data.class_lists import load_class_space
from shiftproof.data.reading import ReadSettings
from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import ShiftSuite, load_suite, own_suite
from shiftproof.ensembling.batch_norm import require_batch_norm
from shiftproof.errors import InputError
from shiftproof.finetuning.loop import few_shot
from shiftproof.finetuning.recipes import require_trainable_batches
from shiftproof.models.classifier import Classifier
from shiftproof.models.directories import load_classifier
from shiftproof.models.text_towers import with_zero_shot_head
from shiftproof.runs.file import RunFile, SuiteFile, draws_validation
from shiftproof.runs.starts import StartSettings, build_named_start


def load_run_suite(run_file: RunFile) -> ShiftSuite:
    """Loads the embedded suite or the user's own data, with held-out sets of at most ``limit`` images.

    Its picture files are read as the run file says.
    """
    if isinstance(run_file.suite, SuiteFile):
        sections = run_file.suite.model_dump()
        suite = own_suite(sections["reference"], sections["shifts"], name=sections["name"], seed=run_file.seed)
    else:
        suite = load_suite(run_file.suite, seed=run_file.seed)
    settings = ReadSettings(cache=run_file.image_cache, jpeg_draft=run_file.evaluation.jpeg_draft)
    suite = suite.read_with(settings)
    if run_file.on_bad_image == "skip":
        suite = suite.without_undecodable()
    return suite.limited(run_file.limit)


def build_start(run_file: RunFile, suite: ShiftSuite | None) -> Classifier:
    """Loads the start: a classifier directory, or a model with a head for the suite's classes.

    If the run file names classes, they take the place of the suite's, and a classifier directory gets a zero-shot head
    for them, too; without a suite, it must name some. Raises an InputError for a model with random weights, unless the
    run file asks for them, for a head that the start cannot have, and for a file of classes that lacks some of the
    suite's.
    """
    known = None if suite is None else suite.classes
    classes = known if run_file.classes is None else load_class_space(run_file.classes, known)
    if (Path(run_file.model) / "classifier.json").is_file():
        if run_file.head is not None:
            raise InputError(f"{run_file.model} is a classifier directory, whose classifier has a head. Omit `head`.")
        if run_file.weights is not None:
            raise InputError(f"{run_file.model} is a classifier directory, which has weights. Omit `weights`.")
        classifier = load_classifier(run_file.model)
        if run_file.classes is None or classes is None:
            return classifier
        head: dict[str, Any] = {"seed": run_file.seed, "device": run_file.device, "cache": run_file.head_cache}
        return with_zero_shot_head(classifier, classes, run_file.prompts, **head)
    settings = StartSettings(
        head=run_file.head,
        prompts=run_file.prompts,
        seed=run_file.seed,
        random_weights=run_file.random_weights,
        device=run_file.device,
        weights=run_file.weights,
        cache=run_file.head_cache,
    )
    return build_named_start(run_file.model, classes, settings, None if suite is None else suite.reference)


def require_trainable(run_file: RunFile, suite: ShiftSuite, start: Classifier | None) -> None:
    """Raises an InputError where an image of any set is missing, or where batch norm would see a single image.

    The same goes for batch norm that is to be re-estimated in a network without it. Otherwise such mistakes would be
    noticed only after the fine-tuning.
    """
    suite.require_readable()
    if start is not None:
        require_trainable_batches(start, run_file.finetune, seed=run_file.seed)
        if run_file.batch_norm == "re-estimated":
            require_batch_norm(start)


def batch_norm_images(
    run_file: RunFile, suite: ShiftSuite, training: Mapping[str, Any] | None = None
) -> ImageSet | None:
    """Returns the images on which ensembles' batch norm is re-estimated, or None where statistics are averaged.

    They are the ``training_images``.
    """
    return None if run_file.batch_norm == "averaged" else training_images(run_file, suite, training)


def training_images(run_file: RunFile, suite: ShiftSuite, training: Mapping[str, Any] | None = None) -> ImageSet:
    """The images that a fine-tuning sees: the training images, or the few of each class that ``shots`` draws.

    ``training`` is that of a classifier that was fine-tuned earlier, whose own settings and seed then count.
    """
    settings = (training or {}).get("settings")
    shots = run_file.finetune.shots if settings is None else settings.get("shots")
    seed = (training or {}).get("seed", run_file.seed)
    return suite.reference.train if shots is None else few_shot(suite.reference.train, shots, seed=seed)


def require_unseen_validation(suite: str | SuiteFile, seed: int, fine_tuned: Classifier) -> None:
    """Raises an InputError if ``seed`` draws other validation images of a suite than the training's seed did.

    The validation split would then contain images that the classifier was trained on.
    """
    trained = fine_tuned.training.get("seed", seed)
    if draws_validation(suite) and trained != seed:
        raise InputError(
            f"the fine-tuned classifier held out its validation images with seed {trained}, and here they are drawn "
            f"with seed {seed}, so most of them were trained on. Add `seed={trained}`, or name `validation` data."
        )
