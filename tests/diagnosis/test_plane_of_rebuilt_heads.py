"""The plane through classifiers whose text towers were fine-tuned: each point's head is written by its text tower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.text_towers import contrastive, weighted
from torch import Tensor

import shiftproof as sp
from shiftproof.models.text_towers import rebuilt_head, text_weights, with_text

CLASSES = ("lemon", "kiwifruit", "grapes", "red_apple")
HEAD = {"head.weight", "head.bias"}


@pytest.fixture(scope="module")
def models(tiny: sp.models.Clip) -> list[sp.Classifier]:
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(CLASSES))
    return [zero, contrastive(zero, tiny, 1), contrastive(zero, tiny, 2)]


@pytest.fixture(scope="module")
def images(models: list[sp.Classifier]) -> sp.ImageSet:
    return sp.load_data("emoji").of_classes(models[0].classes)


def loss(classifier: sp.Classifier, images: sp.ImageSet) -> float:
    predictions = sp.predict(classifier, images)
    logits = torch.from_numpy(predictions.logits)
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(predictions.labels)))


def flat(model: sp.Classifier, text: dict[str, Tensor]) -> Tensor:
    """All weights that are combined: those of the encoder and those of the text tower."""
    entries = [*model.network.encoder.state_dict().values(), *text.values()]
    return torch.cat([entry.double().flatten() for entry in entries if entry.is_floating_point()])


@pytest.mark.slow
def test_every_point_has_the_head_that_its_text_tower_writes(
    models: list[sp.Classifier], images: sp.ImageSet, tiny: sp.models.Clip
) -> None:
    plane = sp.diagnosis.measure_plane(*models, images, steps=3)
    texts = [text_weights(tiny), *(dict(model.text or {}) for model in models[1:])]
    origin, *ends = (flat(model, text) for model, text in zip(models, texts, strict=True))
    u, w = (end - origin for end in ends)
    along = float(w @ u / u.norm())
    height = float((w - (w @ u) / (u @ u) * u).norm())
    assert plane.points["first"].x == pytest.approx(float(u.norm()), rel=1e-6)
    assert (plane.points["second"].x, plane.points["second"].y) == pytest.approx((along, height), rel=1e-5)
    farthest = 0.0
    for j, y in enumerate(plane.axes[1]):
        for i, x in enumerate(plane.axes[0]):
            second = y / height
            first = (x - second * along) / float(u.norm())
            shares = (1 - first - second, first, second)
            weights = weighted([model.state_dict() for model in models], lambda _, shares=shares: shares)
            text = weighted(texts, lambda _, shares=shares: shares)
            head, _ = rebuilt_head(with_text(tiny, text), models[0])
            expected = loss(models[0].with_weights(weights | head), images)
            assert plane.loss[j][i] == pytest.approx(expected, rel=1e-3)
            farthest = max(farthest, abs(loss(models[0].with_weights(weights), images) - expected) / expected)
    assert farthest > 0.01  # averaged heads give another loss, which the comparison above would see


@pytest.mark.slow
def test_the_three_models_keep_their_own_heads(models: list[sp.Classifier], images: sp.ImageSet) -> None:
    plane = sp.diagnosis.measure_plane(*models, images, steps=2)
    for name, model in zip(("zero_shot", "first", "second"), models, strict=True):
        assert plane.points[name].loss == pytest.approx(loss(model, images), rel=1e-5)
        predictions = sp.predict(model, images)
        assert plane.points[name].error == np.mean(predictions.logits.argmax(1) != predictions.labels)


def test_a_missing_text_tower_and_a_trained_head_are_refused(models: list[sp.Classifier], images: sp.ImageSet) -> None:
    zero, first, second = models
    with pytest.raises(sp.InputError, match=r"missing \(`text` is None\).*text_tower\.safetensors"):
        sp.diagnosis.measure_plane(zero, first, replace(second, text=None), images)
    with pytest.raises(sp.InputError, match="others have a head that is trained"):
        sp.diagnosis.measure_plane(zero, first, replace(second, head="trained"), images)


def test_text_towers_that_span_no_plane_with_their_encoders_are_refused(
    models: list[sp.Classifier], images: sp.ImageSet
) -> None:
    zero, first, _ = models
    with pytest.raises(sp.InputError, match="on one line"):
        sp.diagnosis.measure_plane(zero, first, sp.wise_ft(zero, first, 0.5), images)
