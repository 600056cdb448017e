"""Running a classifier over a set, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from shiftproof.evaluation.predictions import Predictions
from shiftproof.training.distributed import process_count, process_index, summed

# Every evaluation's, since logits depend on it in their last bits.
BATCH_SIZE = 256


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
    shares, own = (process_count(), process_index()) if together else (1, 0)
    # Batches are those of one process alone, whichever process runs them: so are the logits, to the last bit.
    starts = range(own * batch_size, len(images), shares * batch_size)
    places = [i for start in starts for i in range(start, min(start + batch_size, len(images)))]
    rows = [np.empty((0, len(classifier.classes)), dtype=np.float32)]
    seen = 0
    for batch in predict_batches(classifier, images, device=device, batch_size=batch_size, places=places):
        rows.append(batch)
        seen += len(batch)
        progress.report(stage, min(seen * shares, len(images)), len(images))
    logits = np.concatenate(rows)
    if shares > 1:
        whole = np.zeros((len(images), logits.shape[1]), dtype=np.float32)
        whole[places] = logits
        logits = summed(whole, device)
    return Predictions(images.ids, images.labels, logits, images.groups)


def predict_batches(
    classifier: Predictor,
    images: ImageSet,
    *,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    places: Sequence[int] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """(B, K) float32 logits of the images, or of those at ``places``, batch by batch; no more is held."""
    require_its_classes(classifier, images)
    network = classifier.network_on(device)
    some = images if places is None else images.subset(places) if places else None
    for batch in () if some is None else evaluation_batches(some, classifier.preprocessing, batch_size):
        with torch.inference_mode():  # not around the yield: it would hold for whoever asks for the next batch
            logits = network(batch.to(device)).float().cpu().numpy()
        yield logits


def require_its_classes(classifier: Predictor, images: ImageSet) -> None:
    """Raises an InputError unless a set is labelled in the classifier's class space."""
    if images.classes.ids != classifier.classes.ids:
        raise InputError(
            f"{images.name} is labelled in another class space than the classifier's. "
            "Load it with classes=classifier.classes, which matches by name."
        )
