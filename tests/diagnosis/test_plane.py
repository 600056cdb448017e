"""The plane through three models' weights: against weights written from the formula, and what is no plane."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import shiftproof as sp
from shiftproof.models.classifier import Network
from shiftproof.report.plane import plane_figure

pytestmark = pytest.mark.slow

CLASSES = ("lemon", "kiwifruit", "grapes", "red_apple")


@pytest.fixture(scope="module")
def models() -> tuple[sp.Classifier, sp.Classifier, sp.Classifier]:
    zero = sp.zero_shot_classifier(sp.load_clip("tiny"), sp.ClassSpace.from_ids(CLASSES))
    return zero, moved(zero, 1), moved(zero, 2)


def moved(start: sp.Classifier, seed: int) -> sp.Classifier:
    generator = torch.Generator().manual_seed(seed)

    def noisy(entry: torch.Tensor) -> torch.Tensor:
        return entry + 0.3 * entry.std() * torch.randn(entry.shape, generator=generator) if entry.numel() > 1 else entry

    return start.with_weights({name: noisy(entry) for name, entry in start.state_dict().items()})


@pytest.fixture(scope="module")
def images(models: tuple[sp.Classifier, ...]) -> sp.ImageSet:
    return sp.load_data("emoji").of_classes(models[0].classes)


def error(classifier: sp.Classifier, images: sp.ImageSet) -> float:
    predictions = sp.predict(classifier, images)
    return 1 - sp.evaluation.accuracy(predictions.logits, predictions.labels)


def test_every_point_has_the_weights_of_the_formula(
    models: tuple[sp.Classifier, sp.Classifier, sp.Classifier], images: sp.ImageSet
) -> None:
    measured = sp.diagnosis.measure_plane(*models, images, steps=3)
    flat = [torch.cat([e.double().flatten() for e in m.state_dict().values()]) for m in models]
    u, w = flat[1] - flat[0], flat[2] - flat[0]
    v = w - (w @ u) / (u @ u) * u
    assert measured.points["first"].x == pytest.approx(float(u.norm()), rel=1e-6)
    assert measured.points["second"].y == pytest.approx(float(v.norm()), rel=1e-6)
    shapes = {name: entry.shape for name, entry in models[0].state_dict().items()}
    for j, y in enumerate(measured.axes[1]):
        for i, x in enumerate(measured.axes[0]):
            there = (flat[0] + x * u / u.norm() + y * v / v.norm()).float()
            parts = torch.split(there, [shape.numel() for shape in shapes.values()])
            weights = {n: part.reshape(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
            assert measured.error[j][i] == pytest.approx(error(models[0].with_weights(weights), images), abs=0.04)
            low, high = measured.intervals[j][i]
            assert low <= measured.error[j][i] <= high
    for name, model in zip(("zero_shot", "first", "second"), models, strict=True):
        assert measured.points[name].error == pytest.approx(error(model, images))


def test_the_grid_encloses_the_models_and_can_be_drawn(
    models: tuple[sp.Classifier, sp.Classifier, sp.Classifier], images: sp.ImageSet
) -> None:
    before = {name: entry.clone() for name, entry in models[0].state_dict().items()}
    measured = sp.diagnosis.measure_plane(*models, images.subset(range(4)), steps=2, margin=0.1)
    for axis, places in zip(
        measured.axes, zip(*((p.x, p.y) for p in measured.points.values()), strict=True), strict=True
    ):
        assert axis[0] < min(places) and max(places) < axis[-1]
    assert all(torch.equal(entry, before[name]) for name, entry in models[0].state_dict().items())
    labels = [text.get_text() for text in plane_figure(measured, "one", "other").legends[0].get_texts()]
    assert [label.split(" (")[0] for label in labels] == ["zero-shot", "one", "other"]


def test_what_spans_no_plane_is_refused(models: tuple[sp.Classifier, ...], images: sp.ImageSet) -> None:
    zero, first, _ = models
    with pytest.raises(sp.InputError, match="the same weights"):
        sp.diagnosis.measure_plane(zero, first, first, images)
    with pytest.raises(sp.InputError, match="on one line"):
        sp.diagnosis.measure_plane(zero, first, sp.wise_ft(zero, first, 0.5), images)
    with pytest.raises(sp.InputError, match="steps is 1"):
        sp.diagnosis.measure_plane(zero, first, models[2], images, steps=1)


def test_outputs_that_are_not_finite_are_errors(
    models: tuple[sp.Classifier, sp.Classifier, sp.Classifier], images: sp.ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = replace(images.subset(range(4)), labels=np.zeros(4, dtype=np.int64))  # the class that NaN names
    monkeypatch.setattr(Network, "forward", lambda *_: torch.full((4, 3), torch.nan))
    measured = sp.diagnosis.measure_plane(*models, zeros, steps=2)
    assert {point.error for point in measured.points.values()} == {1.0}
    assert measured.loss == ((None, None), (None, None))


def test_numbers_are_finite(models: tuple[sp.Classifier, sp.Classifier, sp.Classifier], images: sp.ImageSet) -> None:
    measured = sp.diagnosis.measure_plane(*models, images.subset(range(4)), steps=2)
    assert np.isfinite(np.array(measured.loss)).all()
