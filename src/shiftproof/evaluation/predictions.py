"""Running a classifier over a set, once, and keeping what it said."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof import progress
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError
from shiftproof.evaluation.metrics import Scores
from shiftproof.processes import process_count, process_index, summed
from shiftproof.storage import write_atomically

# Every evaluation's, since logits depend on it in their last bits.
BATCH_SIZE = 256
# What numpy raises for files that are absent, cut, damaged or of other content.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Predictions:
    """A classifier's logits on one set, sample by sample.

    ``ids`` (N,) name the samples, ``labels`` (N,) are their classes, ``logits`` (N, K) float32; ``groups`` (N,)
    splits the samples for reporting, where the set has groups.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    groups: tuple[str, ...] | None = None


class Predictor(Protocol):
    """What can be run over a set: a classifier, or anything else with its classes, preprocessing and logits."""

    @property
    def classes(self) -> ClassSpace: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    def network_on(self, device: str) -> Callable[[Tensor], Tensor]:
        """(B, 3, size, size) inputs on the device to (B, K) logits, as in evaluation."""
        ...


def predict(
    classifier: Predictor,
    images: ImageSet,
    *,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    stage: str = "predict",
    together: bool = False,
) -> Predictions:
    """The logits of every image of a set, in the set's order, in float32.

    With ``together`` all processes of a training call this: each takes its share of the batches, every image counts
    once, and all get the logits of all images. Raises an InputError where the set's class space is not the
    classifier's.
    """
    require_its_classes(classifier, images)
    network = classifier.network_on(device)
    shares, own = (process_count(), process_index()) if together else (1, 0)
    starts = range(own * batch_size, len(images), shares * batch_size)
    places = [i for start in starts for i in range(start, min(start + batch_size, len(images)))]
    rows = [np.empty((0, len(classifier.classes)), dtype=np.float32)]
    seen = 0
    with torch.inference_mode():
        # Batches are those of one process alone, whichever process runs them: so are the logits, to the last bit.
        for batch in evaluation_batches(images.subset(places), classifier.preprocessing, batch_size) if places else ():
            rows.append(network(batch.to(device)).float().cpu().numpy())
            seen += len(batch)
            progress.report(stage, min(seen * shares, len(images)), len(images))
    logits = np.concatenate(rows)
    if shares > 1:
        whole = np.zeros((len(images), logits.shape[1]), dtype=np.float32)
        whole[places] = logits
        logits = summed(whole, device)
    return Predictions(images.ids, images.labels, logits, images.groups)


def require_its_classes(classifier: Predictor, images: ImageSet) -> None:
    """Raises an InputError unless a set is labelled in the classifier's class space."""
    if images.classes.ids != classifier.classes.ids:
        raise InputError(
            f"{images.name} is labelled in another class space than the classifier's. "
            "Load it with classes=classifier.classes, which matches by name."
        )


def save_predictions(predictions: Predictions, path: Path) -> Path:
    """Writes ids, labels, logits and groups to an ``.npz`` without pickle."""
    entries: dict[str, NDArray[np.generic]] = {
        "ids": np.array(predictions.ids),
        "labels": predictions.labels,
        "logits": predictions.logits,
    }
    if predictions.groups is not None:
        entries["groups"] = np.array(predictions.groups)
    return write_atomically(path, lambda temporary: np.savez_compressed(temporary, **entries))  # type: ignore[arg-type]


def load_predictions(path: Path) -> Predictions:
    """Reads what ``save_predictions`` wrote; an error names the file."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            groups = tuple(file["groups"].tolist()) if "groups" in file else None
            return Predictions(tuple(file["ids"].tolist()), file["labels"], file["logits"], groups)
    except _UNREADABLE as error:
        raise InputError(f"the predictions {path} cannot be read ({error}). Run the evaluation again.") from error


def save_scores(kept: Scores, ids: tuple[str, ...], path: Path) -> Path:
    """Writes the compact form, one array a field, to an ``.npz`` without pickle."""
    entries = {
        "ids": np.array(ids),
        "prediction": kept.prediction,
        "confidence": kept.confidence,
        "margin": kept.margin,
        "log_probability": kept.log_probability,
        "square_sum": kept.square_sum,
    }
    return write_atomically(path, lambda temporary: np.savez_compressed(temporary, **entries))  # type: ignore[arg-type]


def load_scores(path: Path) -> tuple[tuple[str, ...], Scores]:
    """The ids and the compact form that ``save_scores`` wrote; an error names the file."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return tuple(file["ids"].tolist()), Scores(**{n: file[n] for n in file.files if n != "ids"})
    except _UNREADABLE as error:
        raise InputError(f"the predictions {path} cannot be read ({error}). Run the evaluation again.") from error
