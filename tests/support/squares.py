"""Squares of one colour to learn from, and small classifiers that learn them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import array_set
from shiftproof.models.classifier import Network

CLASSES = sp.ClassSpace.from_ids(["lemon", "red_apple", "pear", "plum"])
COLOURS = np.array([[230, 220, 60], [200, 30, 40], [150, 200, 70], [90, 40, 130]])


def squares(name: str, views: int, seed: int, *, noise: float = 25, classes: sp.ClassSpace = CLASSES) -> sp.ImageSet:
    """A noisy square in the class's colour, anywhere on white; without noise, the whole image in that colour."""
    labels = np.repeat(np.arange(len(classes)), views)

    def draw() -> np.ndarray:
        generator = np.random.default_rng(seed)
        images = np.full((len(labels), 32, 32, 3), 255, dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            if not noise:
                image[:] = COLOURS[label]
                continue
            y, x = generator.integers(0, 16, 2)
            drawn = COLOURS[label] + generator.normal(0, noise, (16, 16, 3))
            image[y : y + 16, x : x + 16] = drawn.clip(0, 255)
        return images

    return array_set(name, classes, [f"{name}-{i}" for i in range(len(labels))], labels, draw)


def unreadable(name: str) -> sp.ImageSet:
    def read(_: int) -> np.ndarray:
        raise AssertionError(f"{name} was read")

    return replace(squares(name, 2, 0), read=read)


def load_run_suite(train: sp.ImageSet, validation: sp.ImageSet) -> sp.ShiftSuite:
    """What fine-tuning may read, beside a test split and a shift that must stay closed."""
    reference = sp.data.Reference("photo", train, validation, unreadable("test"))
    return sp.ShiftSuite("squares", CLASSES, reference, (sp.data.Shift("sketch", "natural", unreadable("sketch")),))


SUITE = load_run_suite(squares("train", 6, 0), squares("validation", 4, 1))


def toy(seed: int = 0, **changes: Any) -> sp.Classifier:
    """A convolution with batch norm under a linear head: fast, and with statistics that could move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        head = nn.Linear(32, len(CLASSES))
    made = sp.Classifier(
        network=Network(encoder, head).eval(),
        classes=CLASSES,
        preprocessing=Preprocessing(size=16),
        architecture={"name": "toy"},
        source="toy",
        prompts=("a {}.",),
        head="zero-shot",
        logit_scale=1.0,
    )
    return replace(made, **changes)


def settings(**changes: Any) -> sp.FinetuneSettings:
    given_ones = {"epochs": 2, "lr": 1e-2, "batch_size": 12, "warmup_steps": 0, **changes}
    return sp.FinetuneSettings(**given_ones)


def bits(classifier: sp.Classifier) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in classifier.state_dict().items()}


def fraction_right(classifier: sp.Classifier, images: sp.ImageSet) -> float:
    found = sp.predict(classifier, images)
    right = 0
    for row, label in zip(found.logits.tolist(), found.labels.tolist(), strict=True):
        right += row.index(max(row)) == label
    return right / len(images)
