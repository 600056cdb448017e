"""Classes, images, masks and windows for studies of strong edges."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import array_set
from shiftproof.diagnosis.strong_edge import (
    CLEAN,
    MEASURES,
    WindowMeasurements,
)
from shiftproof.diagnosis.windows import CONTENTS, Window, WindowSettings
from shiftproof.models.classifier import Network
from shiftproof.records.codec import from_json
from shiftproof.records.windows import StrongEdgeStudy

Pixels = NDArray[np.uint8]
SIZE = 16
CLASSES = sp.ClassSpace.from_ids(["red", "green", "blue"])
GREY, NOISE, OTHER = (Window(content, 0.0, 0.375, "away") for content in CONTENTS)
FEW = WindowSettings(contents=("noise",), edges=(0.0, 0.5), sides=(0.35,), places=("away",))


class Gazer(nn.Module):
    """A network as timm builds them whose last map, one channel a class, is what it says of every pixel.

    "window": grey of exactly 0.5, evidence for the first class. "object": the pixel's strong colour, evidence for its
    class. "everywhere": the same for all classes.
    """

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def forward_features(self, images: Tensor) -> Tensor:
        if self.at == "everywhere":
            return torch.ones_like(images)
        if self.at == "object":
            return ((images > 0.7) & (images.sum(1, keepdim=True) < 1.1)).float()
        grey = (images == 0.5).all(1).float()
        return torch.stack([grey, torch.zeros_like(grey), torch.zeros_like(grey)], dim=1)

    def forward_head(self, places: Tensor) -> Tensor:
        return places.mean((2, 3))

    def get_classifier(self) -> nn.Module:
        return nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def gazing(at: str, classes: sp.ClassSpace = CLASSES) -> sp.Classifier:
    """Every class's logit is ten times the mean of its channel; red is the first channel, whatever its label."""
    head = nn.Linear(3, len(classes))
    with torch.no_grad():
        head.weight.copy_(torch.stack([10.0 * torch.eye(3)[CLASSES.ids.index(name)] for name in classes.ids]))
        head.bias.zero_()
    return sp.Classifier(
        network=Network(Gazer(at), head, normalised=False).eval(),
        classes=classes,
        preprocessing=Preprocessing(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash"),
        architecture={"name": at},
        source="rigged",
        prompts=(),
        head="trained",
        logit_scale=1.0,
    )


def squares(labels: Sequence[int], sides: Sequence[int] = (4, 5, 6)) -> sp.ImageSet:
    """A square of the label's colour in the middle of black."""

    def cover(i: int) -> Pixels:
        result = np.zeros((SIZE, SIZE), dtype=np.uint8)
        side = sides[i % len(sides)]
        result[6 : 6 + side, 6 : 6 + side] = 255
        return result

    def read(i: int) -> Pixels:
        result = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        result[..., labels[i]] = np.where(cover(i) > 0, 250, 0)
        return result

    ids = tuple(f"square-{i}" for i in range(len(labels)))
    return sp.ImageSet("squares", CLASSES, ids, np.array(labels), read, mask=cover)


LABELS = [0, 1, 2, 2, 1, 0, 0, 1]
WINDOWS = (*(Window(c, 0.0, 0.2, "away") for c in ("grey", "noise")), Window("grey", 0.5, 0.2, "away"))


def planted(shift: float = 0.0, classes: Sequence[int] = (0, 0, 1, 1, 2, 2, 3, 3), seed: int = 0) -> WindowMeasurements:
    """Random values that differ more between classes than within."""
    random = np.random.default_rng(seed)
    base = np.linspace(0.1, 0.4, 4)[list(classes)]

    def values(names: Sequence[str], number: int) -> dict[str, NDArray[np.float64]]:
        return {name: base + shift * (number + 1) + 0.02 * random.random(len(classes)) for name in names}

    result = {CLEAN: values(("object_share", "width", "score", "correct"), 0)}
    result |= {window.name: values(MEASURES, number) for number, window in enumerate(WINDOWS)}
    return WindowMeasurements("cam", np.array(classes), WINDOWS, result)


def toy_set(labels: Sequence[int], classes: sp.ClassSpace = CLASSES, first: int = 0, masks: bool = True) -> sp.ImageSet:
    """Images of one byte each, ``first`` and onwards; a mask is its image's complement."""
    values = np.arange(first, first + len(labels), dtype=np.uint8)
    pixels = np.broadcast_to(values[:, None, None, None], (len(labels), 2, 2, 3))
    covers = 255 - pixels[..., 0]
    ids = [str(i) for i in range(len(labels))]
    return array_set("toy", classes, ids, np.array(labels), lambda: pixels, masks=(lambda: covers) if masks else None)


FRUIT = sp.ClassSpace.from_ids(["lemon", "kiwi", "pear", "grape"])


def picture_set(split: str, views: int, seed: int) -> sp.ImageSet:
    """A plain square of the class's colour at a random place on white, with its mask."""
    colours = np.array([[240, 210, 40], [110, 90, 50], [120, 190, 60], [110, 50, 130]])
    labels = np.repeat(np.arange(4), views)
    random = np.random.default_rng([seed, *split.encode()])
    corners = random.integers(4, 28, (len(labels), 2))

    def drawn() -> tuple[Pixels, Pixels]:
        pixels = np.full((len(labels), 64, 64, 3), 255, dtype=np.uint8)
        covers = np.zeros((len(labels), 64, 64), dtype=np.uint8)
        for i, (y, x) in enumerate(corners):
            pixels[i, y : y + 30, x : x + 30] = colours[labels[i]]
            covers[i, y : y + 30, x : x + 30] = 255
        return pixels, covers

    ids = [f"{FRUIT.ids[label]}-{split}-{i % views}" for i, label in enumerate(labels)]
    return array_set(split, FRUIT, ids, labels, lambda: drawn()[0], masks=lambda: drawn()[1])


def picture_suite(name: str = "emoji", seed: int = 0) -> sp.ShiftSuite:
    """As in the embedded suites, the seed moves the training views only."""
    parts = (picture_set("train", 2, seed), picture_set("validation", 1, 99), picture_set("test", 3, 99))
    return sp.ShiftSuite(name, FRUIT, sp.data.Reference("colour", *parts), (), views_by_seed=True)


def stamps(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    before = stamps(folder)
    yield
    assert stamps(folder) == before


def study_in(folder: str | Path) -> StrongEdgeStudy:
    return from_json(StrongEdgeStudy, json.loads(Path(folder, "strong_edge.json").read_text(encoding="utf-8")))
