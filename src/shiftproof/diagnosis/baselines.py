"""Networks that are trained on the reference alone: from random weights, or on one half of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from shiftproof.data.labels import ClassSpace
from shiftproof.data.sets import ImageSet, require_set
from shiftproof.data.suites import ShiftSuite, require_suite
from shiftproof.errors import InputError, require_choice
from shiftproof.finetuning.loop import finetune
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.classifier import Classifier, Network, require_classifier
from shiftproof.models.encoders import build_encoder, linear_head
from shiftproof.models.tiny import TINY_SIZES
from shiftproof.seeding import child_generator, global_draws
from shiftproof.training.hardware import LoopSettings

_HEAD_LENGTH = 16.0


def untrained(start: Classifier, *, seed: int = 0) -> Classifier:
    """Returns a classifier with the start's architecture, classes and preprocessing, and with random weights.

    The head's rows are random directions of the same length, so that the first predictions are neither uniform nor
    overconfident.
    """
    require_classifier(start, "start")
    with global_draws(seed, "untrained"):
        encoder = build_encoder(start.architecture)
        rows = functional.normalize(torch.randn_like(start.network.head.weight), dim=1)
    network = Network(encoder, linear_head(_HEAD_LENGTH * rows), start.network.normalised)
    network.requires_grad_(True)
    return replace(
        start,
        network=network.eval(),
        logit_scale=_HEAD_LENGTH,
        source=f"untrained {start.source}",
        head="trained",
        alpha=None,
        parents=(),
        training={},
        text=None,
    )


def halves(images: ImageSet, *, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Returns two disjoint random halves of a set, drawn class by class.

    Where a class has an odd number of images, chance decides which half gets one more. Raises an InputError where a
    half would be empty.

    >>> from shiftproof.data.suites import load_data
    >>> [len(half) for half in halves(load_data("emoji").subset(range(8)))]
    [4, 4]
    """
    require_set(images)
    generator = child_generator(seed, "halves")
    first: list[int] = []
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        order = members[torch.randperm(len(members), generator=generator).numpy()]
        extra = len(members) % 2 and int(torch.randint(2, (1,), generator=generator))
        first += order[: len(members) // 2 + extra].tolist()
    second = sorted(set(range(len(images))) - set(first))
    if not first or not second:
        raise InputError(f"{images.name} has {len(images)} image(s); each half needs at least one.")
    return images.subset(sorted(first)), images.subset(second)


def finetune_half(
    start: Classifier,
    suite: ShiftSuite,
    settings: FinetuneSettings,
    which: int,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Classifier:
    """Fine-tunes on one of the reference's two ``halves``, which form the paper's baseline pair (WiSE-FT, app. E).

    ``which`` is 0 or 1. The number of epochs is doubled, so that the training takes as many steps as on the whole
    reference. Raises what ``finetune`` raises.
    """
    require_suite(suite)
    train = halves(suite.reference.train, seed=seed)[which]
    half = replace(suite, reference=replace(suite.reference, train=train))
    return finetune(start, half, half_settings(settings), seed=seed, device=device)


def half_settings(settings: FinetuneSettings) -> FinetuneSettings:
    """Returns the settings for a half: those for the whole reference with twice as many epochs."""
    return replace(settings, epochs=2 * settings.epochs)


def train_from_scratch(
    start: Classifier,
    suite: ShiftSuite,
    settings: FinetuneSettings,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Classifier:
    """Trains the start's architecture on the suite's reference alone, from random weights.

    Raises what ``finetune`` raises.
    """
    return finetune(untrained(start, seed=seed), suite, settings, seed=seed, device=device)


@dataclass(frozen=True)
class BaselineSettings:
    """One network of the emoji suites' baseline: the ``size`` of the tiny tower, and its number of ``epochs``."""

    size: str
    epochs: int

    @property
    def name(self) -> str:
        """The name of the network, e.g. "third-8"."""
        return f"{self.size}-{self.epochs}"

    @property
    def settings(self) -> FinetuneSettings:
        """The settings with which the network is trained."""
        return replace(_BASELINE, epochs=self.epochs)


# These sizes and epochs give different accuracies on the reference, as fitting a line through them requires.
BASELINES = tuple(
    BaselineSettings(size, epochs)
    for size, epochs in (("sixth", 6), ("sixth", 12), ("third", 4), ("third", 8), ("third", 16), ("half", 10))
)
_BASELINE = FinetuneSettings(lr=4e-3, batch_size=64, warmup_steps=100, weight_decay=0.05)


def train_baseline(
    start: Classifier,
    suite: ShiftSuite,
    baseline: BaselineSettings,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Classifier:
    """Trains the tiny tower in one size on the reference alone, from random weights.

    Raises an InputError for other architectures, whose baseline is the accuracies of models trained elsewhere, and for
    an unknown size.
    """
    require_suite(suite)
    require_tiny(start)
    name = TINY_SIZES[require_choice("size", baseline.size, TINY_SIZES)]
    vision = {**start.architecture["vision_cfg"], "timm_model_name": name}
    small = replace(start, architecture={**start.architecture, "vision_cfg": vision})
    return train_from_scratch(small, suite, baseline.settings, seed=seed, device=device)


def require_tiny(start: Classifier) -> None:
    """Raises an InputError unless a classifier is the tiny tower, in whose sizes baselines are trained."""
    require_classifier(start, "start")
    if start.architecture.get("vision_cfg", {}).get("timm_model_name") != TINY_SIZES["whole"]:
        raise InputError(
            f"{start.source} is not the tiny tower, in whose sizes the baseline is trained. Give the accuracies of "
            "models that were trained only on your reference as a CSV file (`baselines`)."
        )


def require_trained_with(
    network: Classifier, classes: ClassSpace, settings: FinetuneSettings, seed: int, folder: Path, remedy: str
) -> None:
    """Raises an InputError where a network from ``folder`` was trained with other classes, another seed or settings.

    Settings that do not affect the result (``LoopSettings`` except the precision) may differ. ``remedy`` ends the
    message.
    """
    requested = json.loads(json.dumps(settings.recorded()))
    recorded = network.training.get("settings", {})
    before = network.classes.ids, network.training.get("seed"), _deciding(recorded)
    if before != (classes.ids, seed, _deciding(requested)):
        raise InputError(f"{folder} holds a network that was trained with another seed, suite or setting. {remedy}")


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that affect the result of a training."""
    machine = {field.name for field in fields(LoopSettings)} - {"precision"}
    return {name: value for name, value in settings.items() if name not in machine}
