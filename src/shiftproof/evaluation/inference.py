"""Inference: a classifier is run over a set once, and its logits are returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from shiftproof.evaluation.sharing import Processes
from shiftproof.models.classifier import require_classifier
from shiftproof.models.devices import resolve_device

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


class PredictionStopped(Exception):  # noqa: N818  # nothing has failed
    """A prediction was stopped between two batches, as its caller wished."""


def predict(
    classifier: Predictor,
    images: ImageSet,
    *,
    device: str | torch.device = "auto",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    stage: str = "predict",
    together: bool = False,
    stop: Callable[[], object] | None = None,
) -> Predictions:
    """Runs a classifier over a set and returns the (N, K) float32 logits of its N images, in the order of the set.

    Where the set has a protocol that says which classes may be answered, the logits are projected accordingly.

    ``device`` is any torch device; "auto" means the GPU if there is one, and the CPU otherwise. ``precision`` is that
    of the encoder: "float32", "bfloat16", "float16" (on a GPU only), or "fastest" on the device; weights, features and
    logits are float32 in all of them. ``batch_size`` counts images. ``stage`` is the name under which progress is
    reported. With ``together``, every process of the job calls this function: each runs its share of the batches, and
    all of them receive the logits of all images. ``stop`` is called before each batch, and once it returns true, a
    ``PredictionStopped`` is raised. Raises an InputError if the set is labelled in another class space
    than the classifier's, or if the device or the precision cannot be used.

    >>> from shiftproof.data.suites import load_data
    >>> from shiftproof.models.zero_shot import zero_shot_classifier
    >>> from shiftproof.models.clip import load_clip
    >>> images = load_data("emoji").subset(range(8))
    >>> classifier = zero_shot_classifier(load_clip("tiny"), images.classes)
    >>> predict(classifier, images, device="cpu").logits.shape
    (8, 267)
    """
    blocks = predict_batches(
        classifier,
        images,
        device=device,
        precision=precision,
        batch_size=batch_size,
        stage=stage,
        together=together,
        stop=stop,
    )
    return predictions_of(images, np.concatenate(Processes(together).broadcast(list(blocks))))


def predict_batches(
    classifier: Predictor,
    images: ImageSet,
    *,
    device: str | torch.device = "auto",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    stage: str = "predict",
    together: bool = False,
    stop: Callable[[], object] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yields the (B, K) float32 logits of the images, one batch at a time.

    They are the model's, whatever the protocol of the set. No more than one batch of logits is held in memory. The
    arguments and errors are those of ``predict``. With ``together``, the main process is given the logits of all
    images, and holds one batch of every process; the others must iterate, too, and are given none.
    """
    require_its_classes(classifier, images)
    place = resolve_device(device)
    network = classifier.network_on(device=place, precision=precision)

    def compute(share: ImageSet) -> Iterator[NDArray[np.float32]]:
        for batch in evaluation_batches(share, classifier.preprocessing, batch_size):
            if stop and stop():
                raise PredictionStopped
            with torch.inference_mode():  # not around the yield, where it would stay active in the caller
                logits = network(batch.to(place)).float().cpu().numpy()
            yield logits

    for positions, logits in Processes(together).in_batches(images, batch_size, compute):
        yield logits
        progress.report(stage, positions.stop, len(images))


def predictions_of(images: ImageSet, logits: NDArray[np.float32]) -> Predictions:
    """The predictions of a set from the (N, K) logits that a model gave, which its protocol projects."""
    return Predictions.of(images.ids, images.labels, logits, images.groups, images.projection)


def require_its_classes(classifier: Predictor, images: ImageSet) -> None:
    """Raises an InputError unless a set is labelled in the classifier's class space."""
    require_classifier(classifier)
    require_set(images)
    if images.classes.ids != classifier.classes.ids:
        raise InputError(
            f"{images.name} is labelled in another class space than the classifier's. "
            "Load it with classes=classifier.classes, which matches by name."
        )
