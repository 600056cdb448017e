"""The linear probe that a network without a text tower starts from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.classifiers import weight_bytes
from torch import nn

import shiftproof as sp
from shiftproof.data.batches import evaluation_batches, training_batches
from shiftproof.data.loading import Preprocessing
from shiftproof.finetuning import probe
from shiftproof.finetuning.probe import PENALTIES, Head, logistic_head, probe_classifier
from shiftproof.models.encoders import Encoder

CLASSES = sp.ClassSpace.from_ids(["red", "green", "blue"])


class Colours(nn.Module):
    """A network of timm's kind whose features are the mean colours, moved and scaled; ``last`` is its head."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 4)
        self.last: nn.Module = nn.Linear(4, 5)
        self.scale, self.shift = scale, shift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.scale * torch.tanh(self.mix(images.mean((2, 3)))) + self.shift)

    def get_classifier(self) -> nn.Module:
        return self.last

    def reset_classifier(self, _: int) -> None:
        self.last = nn.Identity()


def encoder(scale: float = 1.0, shift: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    return Encoder(
        "colours", Colours(scale, shift).eval(), Preprocessing(size=8), {"library": "timm", "name": "c", "tag": ""}
    )


def noisy(name: str, count: int, seed: int) -> sp.ImageSet:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = generator.integers(0, 120, (count, 10, 10, 3))
    pixels[np.arange(count), :, :, labels] += 60
    drawn = pixels.astype(np.uint8)
    return sp.data.array_set(name, CLASSES, [f"{name}{i}" for i in range(count)], labels, lambda: drawn)


TRAIN, VALIDATION = noisy("train", 48, 0), noisy("validation", 24, 1)


def start(scale: float = 1.0, shift: float = 0.0, **changes: sp.ImageSet) -> sp.Classifier:
    return probe_classifier(
        encoder(scale, shift), **{"train": TRAIN, "validation": VALIDATION, **changes}, device="cpu"
    )


def test_the_head_is_logistic_regression_on_centred_features_of_length_one() -> None:
    """A twin written from the definition: it scales the inputs, and this package the weights."""
    made = start(7.0, 3.0)
    places = list(range(len(TRAIN))) * 2
    (pixels,) = training_batches(TRAIN, made.preprocessing, [places], (0.9, 1.0), seed=0)
    (held_out,) = evaluation_batches(VALIDATION, made.preprocessing, len(VALIDATION))
    with torch.inference_mode():
        features, validation = made.network.features(pixels).double(), made.network.features(held_out).double()
    centre = features.mean(0)
    length = (features - centre).norm(dim=1).square().mean().sqrt()
    labels, zeros = torch.as_tensor(TRAIN.labels[places]), Head(torch.zeros(3, 4), torch.zeros(3))
    best, scores = None, []
    for penalty in PENALTIES:
        head = logistic_head(((features - centre) / length).float(), labels, zeros, penalty)
        logits = ((validation - centre) / length).float() @ head.weight.T + head.bias
        scores.append(float((logits.argmax(1).numpy() == VALIDATION.labels).mean()))
        best = logits if max(scores) == scores[-1] and scores.count(scores[-1]) == 1 else best
    assert [trial["validation"] for trial in made.training["probe"]] == pytest.approx(scores)
    with torch.inference_mode():
        torch.testing.assert_close(made.network(held_out), best, atol=2e-2, rtol=2e-2)
    assert max(scores) > 0.8


def test_the_scale_and_the_offset_of_the_features_do_not_matter() -> None:
    plain, moved = start(), start(50.0, -20.0)
    assert [t["validation"] for t in plain.training["probe"]] == [t["validation"] for t in moved.training["probe"]]
    (images,) = evaluation_batches(VALIDATION, plain.preprocessing, len(VALIDATION))
    with torch.inference_mode():
        torch.testing.assert_close(plain.network(images), moved.network(images), atol=2e-2, rtol=2e-2)


def test_the_same_images_give_the_same_start_and_the_validation_split_chooses_the_penalty() -> None:
    first = start()
    assert weight_bytes(first) == weight_bytes(start())
    assert (first.head, first.classes, first.prompts, first.source) == ("probe", CLASSES, (), "colours")
    shuffled = replace(VALIDATION, labels=np.roll(VALIDATION.labels, 1))
    assert first.training != start(validation=shuffled).training


def test_features_that_are_all_alike_give_no_broken_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = start(0.0)
    assert all(torch.isfinite(tensor).all() for tensor in made.state_dict().values())
    monkeypatch.setattr(probe, "_features", lambda start, batches, device: torch.full((96, 4), float("nan")))
    with pytest.raises(sp.InputError, match="features are not finite"):
        start()


def test_features_that_are_no_vectors_are_refused() -> None:
    flat = Encoder("maps", nn.Sequential(nn.Conv2d(3, 2, 3)), Preprocessing(size=8), {"library": "timm"})
    flat.model.reset_classifier = lambda _: None
    with pytest.raises(sp.InputError, match=r"'maps' gives features of the shape \(2, 6, 6\) for an image"):
        probe_classifier(flat, TRAIN, VALIDATION)
