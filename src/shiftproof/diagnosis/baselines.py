"""Networks that saw the reference only: the same architecture, trained from random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from shiftproof.data.labels import ClassSpace
from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import ShiftSuite
from shiftproof.errors import InputError, require_choice
from shiftproof.finetuning.loop import finetune
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.encoders import build_encoder
from shiftproof.models.tiny import TINY_SIZES
from shiftproof.seeding import child_generator, global_draws
from shiftproof.training.hardware import LoopSettings

_HEAD_LENGTH = 16.0


def untrained(start: Classifier, *, seed: int = 0) -> Classifier:
    """A classifier of the start's architecture, classes and preprocessing with random weights.

    The head's rows are random directions of one length, so that its first logits are neither flat nor sure.
    """
    with global_draws(seed, "untrained"):
        encoder = build_encoder(start.architecture)
        rows = functional.normalize(torch.randn_like(start.network.head.weight), dim=1)
    head = nn.Linear(rows.shape[1], rows.shape[0])
    with torch.no_grad():
        head.weight.copy_(_HEAD_LENGTH * rows)
        head.bias.zero_()
    network = Network(encoder, head, start.network.normalised)
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
    """Two disjoint random halves of a set, class by class; of an odd class either half gets the image that is left.

    >>> from shiftproof.data.suites import load_data
    >>> [len(half) for half in halves(load_data("emoji").subset(range(8)))]
    [4, 4]
    """
    generator = child_generator(seed, "halves")
    first: list[int] = []
    for label in np.unique(images.labels):
        own = np.flatnonzero(images.labels == label)
        order = own[torch.randperm(len(own), generator=generator).numpy()]
        extra = len(own) % 2 and int(torch.randint(2, (1,), generator=generator))
        first += order[: len(own) // 2 + extra].tolist()
    second = sorted(set(range(len(images))) - set(first))
    if not first or not second:
        raise InputError(f"{images.name} has {len(images)} image(s); two halves need one each at least.")
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
    """Fine-tunes on one of the reference's two ``halves``, 0 or 1: the paper's baseline pair (WiSE-FT, app. E).

    The epochs are doubled, so that it takes as many steps as fine-tuning on the whole.
    """
    train = halves(suite.reference.train, seed=seed)[which]
    own = replace(suite, reference=replace(suite.reference, train=train))
    return finetune(start, own, half_settings(settings), seed=seed, device=device)


def half_settings(settings: FinetuneSettings) -> FinetuneSettings:
    """Those of the whole with twice its epochs."""
    return replace(settings, epochs=2 * settings.epochs)


def train_from_scratch(
    start: Classifier,
    suite: ShiftSuite,
    settings: FinetuneSettings,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Classifier:
    """Trains the start's architecture on the suite's reference alone, from random weights."""
    return finetune(untrained(start, seed=seed), suite, settings, seed=seed, device=device)


@dataclass(frozen=True)
class BaselineSettings:
    """One network of the emoji suites' baseline: the tiny tower's ``size``, and how long it is trained."""

    size: str
    epochs: int

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.size}-{self.epochs}"

    @property
    def settings(self) -> FinetuneSettings:
        """How it is trained."""
        return replace(_BASELINE, epochs=self.epochs)


# Of sizes and lengths whose accuracies on the reference lie apart, so that a line through them has an angle.
BASELINES = tuple(
    BaselineSettings(size, epochs)
    for size, epochs in (("sixth", 6), ("sixth", 12), ("third", 4), ("third", 8), ("third", 16), ("half", 10))
)
_BASELINE = FinetuneSettings(lr=4e-3, batch_size=64, warmup_steps=100, weight_decay=0.05)


def train_baseline(
    start: Classifier,
    suite: ShiftSuite,
    wanted: BaselineSettings,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Classifier:
    """Trains the tiny tower in one size on the reference alone, from random weights.

    An InputError refuses other architectures: for these, accuracies of models trained elsewhere serve as the baseline.
    """
    require_tiny(start)
    name = TINY_SIZES[require_choice("size", wanted.size, TINY_SIZES)]
    vision = {**start.architecture["vision_cfg"], "timm_model_name": name}
    small = replace(start, architecture={**start.architecture, "vision_cfg": vision})
    return train_from_scratch(small, suite, wanted.settings, seed=seed, device=device)


def require_tiny(start: Classifier) -> None:
    """Raises an InputError unless a classifier is the tiny tower, which the baseline's networks are sizes of."""
    if start.architecture.get("vision_cfg", {}).get("timm_model_name") != TINY_SIZES["whole"]:
        raise InputError(
            f"{start.source} is not the tiny tower, whose sizes the baseline is trained in. Give accuracies of models "
            "trained on your reference only as a CSV (`baselines`)."
        )


def require_trained_so(
    network: Classifier, classes: ClassSpace, settings: FinetuneSettings, seed: int, folder: Path, remedy: str
) -> None:
    """Raises an InputError where a network that was kept in a folder is of other classes, another seed or setting.

    Settings that decide nothing (``LoopSettings`` but for the precision) may differ; ``remedy`` is the way out.
    """
    asked = json.loads(json.dumps(asdict(settings)))
    known = network.training.get("settings", {})
    if (network.classes.ids, network.training.get("seed"), _deciding(known)) != (classes.ids, seed, _deciding(asked)):
        raise InputError(f"{folder} holds a network that was trained with another seed, suite or setting. {remedy}")


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    machine = {field.name for field in fields(LoopSettings)} - {"precision"}
    return {name: value for name, value in settings.items() if name not in machine}
