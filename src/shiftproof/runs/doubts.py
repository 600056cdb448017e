"""Warnings about results that are probably not what the user wants, issued while a command runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shiftproof import progress
from shiftproof.data.sets import spread_over_classes
from shiftproof.data.suites import VALIDATION, ShiftSuite
from shiftproof.errors import ResultWarning
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.metrics import evaluate, scores
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.classifier import Classifier
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.paths import PathRecord
from shiftproof.report.guessing import guessing_sentences
from shiftproof.runs.checks import check_counts, check_shared_files, check_space, sets_of
from shiftproof.training.distributed import is_main_process

_SCORED = 1000  # images that show whether a start guesses
_NEAR_CHANCE = 0.97  # a loss of at least this share of ln K is that of guessing among K classes
_UNMOVED = 0.98  # a loss that ends above this share of its first epoch's has hardly moved
_LEARNED = 0.05  # nats; a loss below this leaves little to learn


def note_validation(suite: ShiftSuite) -> None:
    """Says how the validation split was drawn, unless the user has named one."""
    if suite.reference.held_out is not None:
        progress.note(f"{VALIDATION}: {suite.reference.held_out}")


def warn_of_guessing(name: str, records: Iterable[AccuracyRecord]) -> None:
    """Warns of each way in which a model guesses; ``name`` is how to call the model."""
    for sentence in guessing_sentences(name, records):
        warnings.warn(sentence, ResultWarning, stacklevel=2)


def warn_of_start(start: Classifier, suite: ShiftSuite, device: str, precision: str) -> None:
    """Warns before a training run if its start guesses on the validation split, of which 1,000 images are scored.

    The start is run in ``precision``, like everything that is measured later.
    """
    if not is_main_process():
        return
    images = spread_over_classes(suite.reference.validation, _SCORED, seed=0)
    predictions = predict(start, images, device=device, precision=precision)
    if not np.isfinite(predictions.logits).all():
        return  # training reports broken weights with the step and a way out
    record = evaluate(
        scores(predictions.logits, predictions.labels),
        predictions.labels,
        start.classes.ids,
        model="zero_shot",
        alpha=0.0,
        set_name=f"the {VALIDATION} split",
        clusters=images.clusters.names,
    )
    warn_of_guessing("the start", [record])


def warn_of_start_of_path(path: PathRecord, class_count: int) -> None:
    """Warns if the start of a measured path, at alpha 0, guesses on a test set."""
    for point in path.points:
        if point.alpha == 0:
            warn_of_guessing(
                "the start, at alpha 0,",
                (
                    AccuracyRecord("zero_shot", 0.0, name, accuracy, point.interval[name], 0, class_count=class_count)
                    for name, accuracy in point.accuracy.items()
                ),
            )


def warn_of_loss(training: Mapping[str, Any], class_count: int) -> None:
    """Warns if the loss of a training run hardly moved, or ended at that of guessing among ``class_count`` classes.

    ``training`` is that of a fine-tuned classifier. A training run of one epoch has no two losses to compare.
    """
    losses = [float(entry["loss"]) for entry in training.get("history", ())]
    if not losses or not is_main_process():
        return
    contrastive = training.get("settings", {}).get("recipe") == "flyp"
    chance = math.log(class_count)
    if not contrastive and losses[-1] >= _NEAR_CHANCE * chance:
        fault = f"ended at {losses[-1]:.3g}, and guessing among {class_count} classes gives {chance:.3g}"
    elif len(losses) > 1 and losses[-1] > _LEARNED and losses[-1] > _UNMOVED * losses[0]:
        fault = f"hardly moved, from {losses[0]:.3g} in the first epoch to {losses[-1]:.3g} in the last"
    else:
        return
    warnings.warn(
        f"The training loss {fault}. Fine-tuning has learned little: check the labels, or raise finetune.lr or "
        "finetune.epochs.",
        ResultWarning,
        stacklevel=2,
    )


def warn_of_data(suite: ShiftSuite, *, limited: bool) -> None:
    """Warns of what the cheap checks of ``doctor`` find in a suite, which is ``limited`` if it has some images only."""
    if not is_main_process():
        return
    findings = check_shared_files(sets_of(suite))
    if not limited:
        findings += check_counts(suite)
    for finding in findings:
        warnings.warn(str(finding), ResultWarning, stacklevel=2)


def warn_of_space(start: Classifier | None, suite: ShiftSuite, settings: FinetuneSettings, out: Path) -> None:
    """Warns if disk or memory probably do not suffice for a run from a start, which a resumed run does not load."""
    if start is None or not is_main_process():
        return
    weights = sum(tensor.nbytes for tensor in start.state_dict().values())
    for finding in check_space(out, weights, len(start.classes), sets_of(suite), settings):
        warnings.warn(str(finding), ResultWarning, stacklevel=2)
