"""The prediction files of a run: logits of its three models, compact scores of every alpha, and accuracies of both."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import ShiftSuite
from shiftproof.ensembling.rules import FIXED_ALPHA, compare_alphas
from shiftproof.errors import InputError, require_equal_length
from shiftproof.evaluation.inference import predict_batches
from shiftproof.evaluation.metrics import ScoreCollector, Scores
from shiftproof.evaluation.predictions import (
    Add,
    StoredPredictions,
    load_scores,
    open_predictions,
    save_scores,
    writing_predictions,
)
from shiftproof.evaluation.scoring import Scored, evaluate_set, measure_variants
from shiftproof.evaluation.sharing import Processes
from shiftproof.models.classifier import Classifier
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.paths import PathRecord
from shiftproof.records.rules import RulesRecord
from shiftproof.runs.directory import scores_file


@dataclass(frozen=True)
class PathFiles:
    """The compact predictions along an alpha path: ``alpha-0.10/SET.npz`` under a folder, each complete or absent."""

    folder: Path
    sets: Mapping[str, ImageSet]

    def file(self, alpha: float, name: str) -> Path:
        """Returns the file of an alpha's predictions on a set; alpha has two decimals where these are exact."""
        return scores_file(self.folder, alpha, name)

    def save(self, alpha: float, name: str, scores: Scores) -> None:
        """Writes the file of an alpha's predictions on a set."""
        save_scores(scores, self.sets[name].ids, self.file(alpha, name))

    def known(self, alpha: float, name: str) -> NDArray[np.bool_] | None:
        """Does what ``correct`` does, but returns None if the file is absent, damaged or of other images."""
        try:
            return self.correct(alpha, name) if self.file(alpha, name).is_file() else None
        except InputError:
            return None

    def read(self, alpha: float, name: str) -> Scores:
        """Reads a file of predictions; raises an InputError if it is damaged or of other images."""
        ids, scores = load_scores(self.file(alpha, name))
        require_same_samples(ids, self.sets[name])
        require_equal_length(f"ids and predictions of {self.file(alpha, name)}", ids, scores.prediction)
        return scores

    def correct(self, alpha: float, name: str) -> NDArray[np.bool_]:
        """Returns whether each image is classified correctly, (N,)."""
        return np.asarray(self.read(alpha, name).prediction == self.sets[name].labels)

    def rules(self, path: PathRecord, suite: ShiftSuite, tolerance: float) -> RulesRecord | None:
        """Compares the rules for alpha; None if alpha 0.5, which they are compared with, is not on the path."""
        if FIXED_ALPHA not in path.alphas:
            return None
        names = (path.reference, *path.shifts)
        correct = {alpha: {name: self.correct(alpha, name) for name in names} for alpha in path.alphas}
        natural = [shift.name for shift in suite.shifts if shift.kind == "natural"]
        sources = {name: self.sets[name].clusters.names for name in names}
        clusters = {name: units for name, units in sources.items() if units is not None}
        return compare_alphas(path, correct, natural or path.shifts, clusters, tolerance=tolerance)


def predict_to_file(
    classifier: Classifier,
    images: ImageSet,
    file: Path,
    *,
    device: str,
    precision: str = "float32",
    together: bool = False,
) -> None:
    """Runs a classifier over a set and writes its logits, batch by batch; with ``together``, the main process does."""
    blocks = predict_batches(classifier, images, device=device, precision=precision, together=together)
    if not Processes(together).leads:
        deque(blocks, maxlen=0)  # this process computes its share and is given nothing
        return
    with writing_logits(images, file) as add:
        for logits in blocks:
            add(logits)


@contextlib.contextmanager
def temporary_logits(
    classifiers: Mapping[str, Classifier], images: ImageSet, *, device: str, precision: str = "float32"
) -> Iterator[dict[str, StoredPredictions]]:
    """Yields several classifiers' logits on a set in temporary files, so that they are not held in memory."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{number}.npz") for number, name in enumerate(classifiers)}
        for name, classifier in classifiers.items():
            predict_to_file(classifier, images, files[name], device=device, precision=precision)
        yield {name: open_predictions(file) for name, file in files.items()}


def writing_logits(images: ImageSet, file: Path) -> contextlib.AbstractContextManager[Add]:
    """Opens a file for the logits of a set, which are added batch by batch; it appears complete or not at all."""
    of_set = images.ids, images.labels, len(images.classes), images.groups, images.projection
    return writing_predictions(file, *of_set)


def has_logits(file: Path, images: ImageSet) -> bool:
    """Whether a file exists and has undamaged logits of a set's images."""
    try:
        return file.is_file() and open_predictions(file).require_whole().ids == images.ids
    except InputError:
        return False


def require_same_samples(ids: tuple[str, ...], images: ImageSet) -> None:
    """Raises an InputError unless predictions are of a set's images, in the same order."""
    if ids != images.ids:
        raise InputError(
            f"the images of {images.name} are not those that this run predicted. Restore the data, or start again "
            "with `overwrite=True`."
        )


def measure_accuracy(
    images: ImageSet,
    predictions: StoredPredictions,
    *,
    model: str,
    alpha: float,
    name: str,
    precision: str = "float32",
    reference: Scored | None = None,
) -> AccuracyRecord:
    """Computes the accuracy record of a model on a set from its logits, for which it ran in ``precision``.

    A set with only some of the classes is compared with the ``reference``.
    """
    collector = ScoreCollector(predictions.labels)
    for logits in predictions.blocks():
        collector.add(logits)
    record = evaluate_set(collector.whole(), images, model=model, alpha=alpha, set_name=name)
    return replace(record, variants=measure_variants(Scored(images, predictions), reference), precision=precision)
