"""Small suites, classifiers and settings for recipes of fine-tuning, and what their optimisers see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from support.classifiers import classifier_around
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.finetuning import loop
from shiftproof.finetuning.recipes import Recipe, recipe_of
from shiftproof.models.clip import build_encoder
from shiftproof.training import engine as training
from shiftproof.training.engine import optimisation_step

PROMPTS = ("a photo of a {}.", "a drawing of one {}.")
VIT_CONFIG = {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
SMALL_VIT = {"library": "open_clip", "name": "small", "embed_dim": 16, "vision_cfg": VIT_CONFIG, "quick_gelu": False}
Trained = Callable[[str], sp.Classifier]


def some(images: sp.ImageSet, views: range) -> sp.ImageSet:
    """The given views of every class."""
    chosen = [np.flatnonzero(images.labels == label)[views] for label in range(len(images.classes))]
    return images.subset(np.concatenate(chosen).tolist())


def smaller(suite: sp.ShiftSuite, images: int) -> sp.ShiftSuite:
    reference = suite.reference
    train, validation = (part.subset(range(images)) for part in (reference.train, reference.validation))
    return replace(suite, reference=replace(reference, train=train, validation=validation))


def seeded_classifier(
    make: Callable[[], nn.Module], width: int, classes: sp.ClassSpace, **changes: Any
) -> sp.Classifier:
    """A classifier around the encoder that ``make`` builds, with weights from the seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, head = make(), nn.Linear(width, len(classes))
    return classifier_around(encoder, head, classes, **changes)


def two_convolutions(classes: sp.ClassSpace) -> sp.Classifier:
    """Two convolutions with batch norm: fast, and with statistics that could move."""

    def encoder() -> nn.Module:
        first = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        return nn.Sequential(*first, nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    return seeded_classifier(encoder, 8, classes)


def small_transformer(classes: sp.ClassSpace) -> sp.Classifier:
    """open_clip's transformer with two small blocks."""
    reported = {"architecture": SMALL_VIT, "preprocessing": Preprocessing(size=64)}
    return seeded_classifier(lambda: build_encoder(SMALL_VIT), 16, classes, **reported)


def two_steps(**changes: Any) -> sp.FinetuneSettings:
    """Two steps in all, unless asked for otherwise."""
    return sp.FinetuneSettings(**{"epochs": 1, "lr": 1e-3, "batch_size": 12, "warmup_steps": 0, **changes})


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if first[name].numpy().tobytes() != second[name].numpy().tobytes()}


def moved(start: sp.Classifier, tuned: sp.Classifier) -> set[str]:
    return differing(start.state_dict(), tuned.state_dict())


def parameters(classifier: sp.Classifier) -> set[str]:
    return {name for name, _ in classifier.network.named_parameters()}


def close(first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, atol: float = 1e-6, rtol: float = 1e-5) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=atol, rtol=rtol, msg=lambda m, name=name: f"{name}: {m}")


@dataclass
class Seen:
    """What a fine-tuning did: its recipe, and every step's weights before and after, gradients and rates by name."""

    recipe: Any = None
    start: Any = None
    before: list[dict[str, Tensor]] = field(default_factory=list)
    after: list[dict[str, Tensor]] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    rates: list[dict[str, float]] = field(default_factory=list)
    decays: list[dict[str, float]] = field(default_factory=list)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.recipe.module.state_dict().items()}


def watch(monkeypatch: pytest.MonkeyPatch) -> Seen:
    result = Seen()

    def made(start: sp.Classifier, *rest: Any, **options: Any) -> Recipe:
        result.start, result.recipe = start, recipe_of(start, *rest, **options)
        return result.recipe

    def taken(losses: Any, trainable: list[nn.Parameter], optimizer: Any, *rest: Any) -> float:
        result.before.append(result.weights())
        loss = optimisation_step(losses, trainable, optimizer, *rest)
        result.after.append(result.weights())
        names = {id(parameter): name for name, parameter in result.recipe.module.named_parameters()}
        assert sorted(map(id, trainable)) == sorted(id(p) for g in optimizer.param_groups for p in g["params"])
        result.gradients.append({names[id(p)]: p.grad.clone() for p in trainable if p.grad is not None})
        for reported, key in ((result.rates, "lr"), (result.decays, "weight_decay")):
            reported.append({names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]})
        return loss

    monkeypatch.setattr(loop, "recipe_of", made)
    monkeypatch.setattr(training, "optimisation_step", taken)
    return result


def text_of(clip: sp.models.Clip) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in clip.model.state_dict().items() if not name.startswith("visual.")}
