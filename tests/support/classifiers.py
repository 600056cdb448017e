"""Small classifiers, and what they hold and predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.models.classifier import Network


def classifier_around(
    encoder: nn.Module, linear: nn.Module, classes: sp.ClassSpace, /, **changes: Any
) -> sp.Classifier:
    """A classifier of 16 px images in evaluation mode, with a linear head; ``changes`` replace its fields."""
    classifier = sp.Classifier(
        network=Network(encoder, linear).eval(),
        classes=classes,
        preprocessing=Preprocessing(size=16),
        architecture={"name": "toy"},
        source="toy",
        prompts=("a {}.",),
        head="zero-shot",
        logit_scale=1.0,
    )
    return replace(classifier, **changes)


def convolution_classifier(
    classes: sp.ClassSpace, /, seed: int = 0, *, relu: bool = True, **changes: Any
) -> sp.Classifier:
    """A convolution with batch norm under a linear head: fast, with float and integer statistics that could move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), *([nn.ReLU()] if relu else [])]
        encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        head = nn.Linear(32, len(classes))
    return classifier_around(encoder, head, classes, **changes)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.detach().contiguous().numpy().tobytes() for name, tensor in tensors.items()}


def weight_bytes(classifier: sp.Classifier) -> dict[str, bytes]:
    return tensor_bytes(classifier.state_dict())


def logits_of(classifier: sp.Classifier, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return classifier.network(images)


def accuracy_of(classifier: sp.Classifier, images: sp.ImageSet) -> float:
    """The fraction of images that are classified correctly."""
    predictions = sp.predict(classifier, images)
    return float(np.mean(predictions.logits.argmax(1) == predictions.labels))
