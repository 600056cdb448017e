"""Squares of one colour to learn from, and small classifiers that learn them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from support.classifiers import convolution_classifier

import shiftproof as sp
from shiftproof.data.sets import array_set

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


def closed_suite(train: sp.ImageSet, validation: sp.ImageSet) -> sp.ShiftSuite:
    """What fine-tuning may read, beside a test split and a shift that must stay closed."""
    reference = sp.data.Reference("photo", train, validation, unreadable("test"))
    return sp.ShiftSuite("squares", CLASSES, reference, (sp.data.Shift("sketch", "natural", unreadable("sketch")),))


SUITE = closed_suite(squares("train", 6, 0), squares("validation", 4, 1))


def square_classifier(seed: int = 0, **changes: Any) -> sp.Classifier:
    return convolution_classifier(CLASSES, seed, **changes)


def two_epochs(**changes: Any) -> sp.FinetuneSettings:
    given_ones = {"epochs": 2, "lr": 1e-2, "batch_size": 12, "warmup_steps": 0, **changes}
    return sp.FinetuneSettings(**given_ones)


def fraction_right(classifier: sp.Classifier, images: sp.ImageSet) -> float:
    predictions = sp.predict(classifier, images)
    right = 0
    for row, label in zip(predictions.logits.tolist(), predictions.labels.tolist(), strict=True):
        right += row.index(max(row)) == label
    return right / len(images)
