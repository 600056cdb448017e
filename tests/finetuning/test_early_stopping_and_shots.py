"""Early stopping, shots of each class, and SGD."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import Seen, close, small_transformer, two_convolutions, two_steps

import shiftproof as sp
from shiftproof.finetuning import loop
from shiftproof.finetuning.loop import few_shot
from shiftproof.training.engine import cosine_with_warmup

pytestmark = pytest.mark.slow


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[str]]:
    """Validation accuracies to come, epoch by epoch, and the fingerprints of what was scored."""
    planned: list[float] = []
    scored: list[str] = []

    def watched(classifier: sp.Classifier, *rest: Any, **options: Any) -> sp.evaluation.Predictions:
        scored.append(sp.models.fingerprint(classifier))
        return sp.predict(classifier, *rest, **options)

    monkeypatch.setattr(loop, "predict", watched)
    monkeypatch.setattr(loop, "accuracy", lambda *_: planned[len(scored) - 1])
    return planned, scored


@pytest.mark.parametrize(
    ("planned", "patience", "epochs", "best"),
    [
        ([0.2, 0.6, 0.5, 0.6, 0.9, 0.9], 2, 4, 1),  # an equal epoch is no better one
        ([0.2, 0.6, 0.5, 0.7, 0.9, 0.8], 2, 6, 4),
        ([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 1, 2, 0),
        ([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 9, 6, 0),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 3, 4, 0),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1, 6, 5),
    ],
)
@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_early_stopping_returns_the_best_epoch(
    few: sp.ShiftSuite,
    scores: tuple[list[float], list[str]],
    planned: list[float],
    patience: int,
    epochs: int,
    best: int,
    ema_decay: float,
) -> None:
    scores[0].extend(planned)
    tuned = sp.finetune(
        two_convolutions(few.classes), few, two_steps(epochs=6, early_stopping=patience, ema_decay=ema_decay)
    )
    assert [entry["validation"] for entry in tuned.training["history"]] == planned[:epochs]
    assert len(set(scores[1])) == len(scores[1]) == epochs
    assert sp.models.fingerprint(tuned) == scores[1][best]


def test_without_it_the_last_epoch_is_returned(few: sp.ShiftSuite, scores: tuple[list[float], list[str]]) -> None:
    scores[0].extend([0.9, 0.1, 0.0])
    tuned = sp.finetune(two_convolutions(few.classes), few, two_steps(epochs=3))
    assert len(scores[1]) == 3
    assert sp.models.fingerprint(tuned) == scores[1][-1]


@given(seed=st.integers(0, 50), shots=st.integers(1, 6), counts=st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_shots_are_so_many_of_every_class_drawn_by_the_seed(seed: int, shots: int, counts: list[int]) -> None:
    labels = np.random.default_rng(seed).permutation([k for k, count in enumerate(counts) for _ in range(count)])
    classes = sp.ClassSpace.from_ids([f"class{k}" for k in range(len(counts))])
    ids = tuple(f"{label}-{i}" for i, label in enumerate(labels))
    images = sp.ImageSet("all", classes, ids, labels, lambda i: np.full((2, 2, 3), i, np.uint8))
    result, again = few_shot(images, shots, seed=seed), few_shot(images, shots, seed=seed)
    assert Counter(result.labels.tolist()) == {k: min(count, shots) for k, count in enumerate(counts)}
    assert result.ids == again.ids == tuple(name for name in ids if name in set(result.ids))
    assert all(images.ids[result.read(i)[0, 0, 0]] == name for i, name in enumerate(result.ids))
    assert [int(name.split("-")[0]) for name in result.ids] == result.labels.tolist()


def test_another_seed_draws_other_shots(few: sp.ShiftSuite) -> None:
    train = few.reference.train
    drawn = [few_shot(train, 1, seed=seed).ids for seed in range(12)]
    assert len(set(drawn)) == 12
    assert set(itertools.chain(*drawn)) == set(train.ids)


@pytest.mark.parametrize("recipe", ["end-to-end", "linear-probe"])
def test_only_the_shots_are_read(few: sp.ShiftSuite, recipe: str) -> None:
    train, read = few.reference.train, set[str]()

    def watched(i: int) -> np.ndarray:
        read.add(train.ids[i])
        return train.read(i)

    reference = replace(few.reference, train=replace(train, read=watched))
    tuned = sp.finetune(
        two_convolutions(few.classes), replace(few, reference=reference), two_steps(recipe=recipe, shots=1), seed=4
    )
    assert read == set(few_shot(train, 1, seed=4).ids)
    assert tuned.training["settings"]["shots"] == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_the_textbook_s(few: sp.ShiftSuite, seen: Seen, momentum: float) -> None:
    lr, decay, start = 0.1, 0.2, small_transformer(few.classes)
    settings = two_steps(optimizer="sgd", momentum=momentum, lr=lr, weight_decay=decay, batch_size=8, clip_norm=0.5)
    tuned = sp.finetune(start, few, settings)
    weights = {name: tensor.double() for name, tensor in start.state_dict().items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for step, gradients in enumerate(seen.gradients):
        assert math.sqrt(sum(float(g.square().sum()) for g in gradients.values())) < 0.5001
        for name, gradient in gradients.items():
            slope = gradient + (decay * weights[name] if weights[name].ndim >= 2 else 0)
            velocity[name] = momentum * velocity[name] + slope
            weights[name] = weights[name] - lr * cosine_with_warmup(step, 3, 0) * velocity[name]
    close(tuned.state_dict(), {name: tensor.float() for name, tensor in weights.items()}, atol=1e-6)
