"""Public data sets in miniature, in the layouts that they are distributed in, and a classifier that reads their labels.

Every picture has the colour of a number from 0 to 999, which is that of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.families.classes import imagenet_classes
from shiftproof.data.loading import Preprocessing
from shiftproof.models.classifier import Network

SIDE = 16
_STEP, _FIRST = 25, 10


def colour(number: int) -> tuple[int, int, int]:
    red, green, blue = number // 100, number // 10 % 10, number % 10
    return (_FIRST + _STEP * red, _FIRST + _STEP * green, _FIRST + _STEP * blue)


def write_picture(path: Path, number: int, *, border: int = 0, side: int = SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((side, side, 3), (255, 0, 0), dtype=np.uint8)
    picture[border : side - border, border : side - border] = colour(number)
    Image.fromarray(picture).save(path, quality=95)


def write_folders(root: Path, numbers: Mapping[str, int], *, count: int = 1) -> None:
    """``count`` pictures in every folder, with the folder's number as their class."""
    for folder, number in numbers.items():
        for i in range(count):
            write_picture(root / folder / f"{Path(folder).name}_{i}.JPEG", number)


def pixels_of_numbers(numbers: Iterable[int]) -> NDArray[np.uint8]:
    """(N, 32, 32, 3) uint8 images of the numbers' colours."""
    return np.stack([np.full((32, 32, 3), colour(number), dtype=np.uint8) for number in numbers])


class _Reading(nn.Module):
    """Maps images to logits that are largest at the number of their colour."""

    def __init__(self, answer: Callable[[int], Mapping[int, float]], classes: int) -> None:
        super().__init__()
        self._answer, self._classes = answer, classes

    def forward(self, images: Tensor) -> Tensor:
        middle = images[:, :, 3:-3, 3:-3].mean((2, 3)) * 255
        digits = ((middle - _FIRST) / _STEP).round().long().clamp(0, 9)
        logits = torch.zeros(len(images), self._classes)
        for row, (red, green, blue) in enumerate(digits.tolist()):
            for k, value in self._answer(100 * red + 10 * green + blue).items():
                logits[row, k] = value
        return logits


def reader(classes: sp.ClassSpace, answer: Callable[[int], Mapping[int, float]] | None = None) -> sp.Classifier:
    """A classifier whose logits follow from the number in a picture; by default, it answers that number."""
    head = nn.Linear(len(classes), len(classes))
    with torch.no_grad():
        head.weight.copy_(torch.eye(len(classes)))
        head.bias.zero_()
    reading = _Reading(answer or (lambda number: {number: 9.0}), len(classes))
    return sp.Classifier(
        network=Network(reading, head, normalised=False).eval(),
        classes=classes,
        preprocessing=Preprocessing(size=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_share=0.875),
        architecture={"name": "toy"},
        source="toy",
        prompts=("a {}.",),
        head="own",
        logit_scale=1.0,
    )


def share_right(classifier: sp.Classifier, images: sp.ImageSet) -> float:
    """The accuracy of a classifier on a set."""
    predictions = sp.predict(classifier, images, device="cpu")
    return sp.evaluation.accuracy(predictions.logits, predictions.labels)


def numbering(images: sp.ImageSet, order: Sequence[int]) -> sp.Classifier:
    """A classifier that knows the classes, and numbers them in another order than the set does."""
    return reader(images.classes, lambda number: {order.index(number): 9.0})


def imagenet_space() -> sp.ClassSpace:
    classes = imagenet_classes()
    return sp.ClassSpace(classes.wnids, classes.names)


def number_of(wnid: str) -> int:
    return imagenet_classes().wnids.index(wnid)
