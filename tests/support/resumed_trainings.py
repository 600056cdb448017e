"""A small training that is stopped after a step, and the bits that it must end with."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.classifiers import classifier_around, tensor_bytes
from support.squares import CLASSES, squares
from torch import Tensor, nn

import shiftproof as sp
from shiftproof import progress

noisy = functools.partial(squares, noise=60)
SUITE = sp.ShiftSuite(
    "squares",
    CLASSES,
    sp.data.Reference("photo", noisy("train", 6, 0), noisy("validation", 5, 1), noisy("test", 1, 2)),
    (),
)


class Mouth(nn.Module):
    """A layer that does nothing, until a test has ``bite`` do something in a training's forward pass."""

    bite: Callable[[], object] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and Mouth.bite is not None:
            Mouth.bite()
        return x


def dropout_classifier(seed: int = 0) -> sp.Classifier:
    """Two convolutions with statistics that move and a layer that draws at random, under a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), Mouth()]
        encoder = nn.Sequential(*layers, nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        head = nn.Linear(32, len(CLASSES))
    return classifier_around(encoder, head, CLASSES)


def eight_steps(**changes: Any) -> sp.FinetuneSettings:
    """Eight steps in four epochs, with a checkpoint after each."""
    given = {"epochs": 4, "lr": 1e-2, "batch_size": 12, "warmup_steps": 0, "checkpoint_every": 1, **changes}
    return sp.FinetuneSettings(**given)


def trained(folder: Path | None = None, start: sp.Classifier | None = None, **changes: Any) -> sp.Classifier:
    seed, trackers = changes.pop("seed", 0), changes.pop("trackers", ())
    start = start or dropout_classifier()
    return sp.finetune(start, SUITE, eight_steps(**changes), seed=seed, checkpoints=folder, trackers=trackers)


@functools.cache
def unbroken(**changes: Any) -> dict[str, bytes]:
    """The bits of a training without checkpoints."""
    return tensor_bytes(trained(**changes).state_dict())


@contextlib.contextmanager
def after_step(step: int, then: Callable[[], object]) -> Iterator[None]:
    """``then`` happens as soon as a step is reported."""
    with progress.listening(lambda e: then() if (e.stage, e.done) == ("fine-tune", step) else None):
        yield


class StopError(Exception):
    """What ends the training from outside."""


def stopped_after(folder: Path, step: int, **changes: Any) -> None:
    """A training that ends right after a step, before a checkpoint could be written of it."""

    def stop() -> None:
        raise StopError

    with after_step(step, stop), pytest.raises(StopError):
        trained(folder, **changes)


def raises(error: BaseException) -> Callable[[], object]:
    def bite() -> object:
        raise error

    return bite
