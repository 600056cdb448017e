"""Inference: a classifier is run over a set once, and its logits are returned."""

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
from shiftproof.data.sets import ImageSet, require_set
from shiftproof.errors import InputError
from shiftproof.evaluation.predictions import Predictions
from shiftproof.models.classifier import require_classifier
from shiftproof.models.devices import resolve_device
from shiftproof.training.distributed import process_count, process_index, summed

# All evaluations use this size, because the last bits of the logits depend on it.
BATCH_SIZE = 256


class Predictor(Protocol):
    """Anything that can be run over a set: a classifier, or another object with classes, preprocessing and logits."""

    @property
    def classes(self) -> ClassSpace: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    def network_on(
        self, *, device: str | torch.device = "auto", precision: str = "float32"
    ) -> Callable[[Tensor], Tensor]:
        """Returns a function from (B, 3, size, size) inputs on the device to (B, K) logits, in evaluation mode.

        The encoder runs in ``precision`` (``Classifier.network_on``).
        """
        ...


def predict(
    classifier: Predictor,
    images: ImageSet,
    *,
    device: str | torch.device = "auto",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    stage: str = "predict",
    together: bool = False,
) -> Predictions:
    """Runs a classifier over a set and returns the (N, K) float32 logits of its N images, in the order of the set.

    Where the set has a protocol that says which classes may be answered, the logits are projected accordingly.

    ``device`` is any torch device; "auto" means the GPU if there is one, and the CPU otherwise. ``precision`` is that
    of the encoder: "float32", "bfloat16", "float16" (on a GPU only), or "fastest" on the device; weights, features and
    logits are float32 in all of them. ``batch_size`` counts images. ``stage`` is the name under which progress is
    reported. With ``together``, every process of a training run calls this function: each runs its share of the
    batches, and all of them receive the logits of all images. Raises an InputError if the set is labelled in another
    class space than the classifier's, or if the device or the precision cannot be used.

    >>> from shiftproof.data.suites import load_data
    >>> from shiftproof.models.zero_shot import zero_shot_classifier
    >>> from shiftproof.models.clip import load_clip
    >>> images = load_data("emoji").subset(range(8))
    >>> classifier = zero_shot_classifier(load_clip("tiny"), images.classes)
    >>> predict(classifier, images, device="cpu").logits.shape
    (8, 267)
    """
    require_classifier(classifier)
    require_set(images)
    torch_device = resolve_device(device)
    processes, index = (process_count(), process_index()) if together else (1, 0)
    # The batches are those of a single process, whichever process runs them, and so are the logits to the last bit.
    starts = range(index * batch_size, len(images), processes * batch_size)
    positions = [i for start in starts for i in range(start, min(start + batch_size, len(images)))]
    rows = [np.empty((0, len(classifier.classes)), dtype=np.float32)]
    done = 0
    for batch in predict_batches(
        classifier, images, device=torch_device, precision=precision, batch_size=batch_size, positions=positions
    ):
        rows.append(batch)
        done += len(batch)
        progress.report(stage, min(done * processes, len(images)), len(images))
    logits = np.concatenate(rows)
    if processes > 1:
        all_logits = np.zeros((len(images), logits.shape[1]), dtype=np.float32)
        all_logits[positions] = logits
        logits = summed(all_logits, torch_device)
    return Predictions.of(images.ids, images.labels, logits, images.groups, images.projection)


def predict_batches(
    classifier: Predictor,
    images: ImageSet,
    *,
    device: str | torch.device = "auto",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    positions: Sequence[int] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yields the (B, K) float32 logits of the images, or of those at ``positions``, one batch at a time.

    They are the model's, whatever the protocol of the set. No more than one batch of logits is held in memory. The
    arguments and errors are those of ``predict``.
    """
    require_classifier(classifier)
    require_set(images)
    require_its_classes(classifier, images)
    torch_device = resolve_device(device)
    network = classifier.network_on(device=torch_device, precision=precision)
    if positions is not None and not positions:
        return
    selected = images if positions is None else images.subset(positions)
    for batch in evaluation_batches(selected, classifier.preprocessing, batch_size):
        with torch.inference_mode():  # not around the yield, where it would stay active in the caller
            logits = network(batch.to(torch_device)).float().cpu().numpy()
        yield logits


def require_its_classes(classifier: Predictor, images: ImageSet) -> None:
    """Raises an InputError unless a set is labelled in the classifier's class space."""
    require_classifier(classifier)
    require_set(images)
    if images.classes.ids != classifier.classes.ids:
        raise InputError(
            f"{images.name} is labelled in another class space than the classifier's. "
            "Load it with classes=classifier.classes, which matches by name."
        )
