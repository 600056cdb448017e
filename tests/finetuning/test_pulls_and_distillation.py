"""Pulls towards the start, and distillation from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import Seen, close, differing, moved, parameters, small_transformer, text_of, two_steps

import shiftproof as sp
from shiftproof.finetuning.recipes import Batch, distillation_loss, recipe_of
from shiftproof.training.engine import cosine_with_warmup

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recipe", ["end-to-end", "head-only", "frozen-head", "norms-and-biases"])
def test_a_huge_pull_stays_at_the_start(few: sp.ShiftSuite, recipe: str) -> None:
    start = small_transformer(few.classes)
    tuned = sp.finetune(start, few, two_steps(recipe=recipe, lr=1e-2, l2_to_start=1e15))
    close(tuned.state_dict(), start.state_dict(), atol=1e-9, rtol=1e-7)
    free = sp.finetune(start, few, two_steps(recipe=recipe, lr=1e-2))
    assert moved(start, free)


def test_a_huge_pull_stays_at_the_start_with_both_towers(
    zero: sp.Classifier, few: sp.ShiftSuite, tiny: sp.models.Clip
) -> None:
    tuned = sp.finetune(zero, few, two_steps(recipe="flyp", lr=1e-2, l2_to_start=1e15))
    assert tuned.text is not None
    close(dict(tuned.text), text_of(tiny), atol=1e-9, rtol=1e-6)
    close(tuned.state_dict(), zero.state_dict(), atol=1e-4)


def test_a_pull_is_the_proximal_step_after_every_other(few: sp.ShiftSuite, seen: Seen) -> None:
    start, pull, lr = small_transformer(few.classes), 30.0, 1e-2
    tuned = sp.finetune(start, few, two_steps(lr=lr, l2_to_start=pull, batch_size=8))
    theta_0, ends = start.state_dict(), [*seen.before[1:], tuned.state_dict()]
    assert len(ends) == 3
    for step, (stepped, drawn) in enumerate(zip(seen.after, ends, strict=True)):
        strength = lr * cosine_with_warmup(step, 3, 0) * pull
        # argmin over theta of |theta - stepped|^2 / 2 + strength |theta - theta_0|^2 / 2
        expected = {name: (stepped[name] + strength * theta_0[name]) / (1 + strength) for name in theta_0}
        close(drawn, expected, atol=1e-7, rtol=1e-5)
        assert differing(drawn, stepped) == parameters(start)


def test_layers_that_learn_slowly_are_drawn_slowly(few: sp.ShiftSuite, seen: Seen) -> None:
    # As weight decay is, whose step is of a layer's own rate.
    start, pull = small_transformer(few.classes), 30.0
    tuned = sp.finetune(start, few, two_steps(lr=1e-2, l2_to_start=pull, layer_decay=0.5, batch_size=24))
    (stepped,), (rates,), theta_0 = seen.after, seen.rates, start.state_dict()
    expected = {n: (stepped[n] + rates[n] * pull * theta_0[n]) / (1 + rates[n] * pull) for n in theta_0}
    close(tuned.state_dict(), expected, atol=1e-7, rtol=1e-5)


def slow_log_softmax(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    scaled = [x / temperature for x in row]
    top = max(scaled)
    log_sum = top + math.log(math.fsum(math.exp(x - top) for x in scaled))
    return [x - log_sum for x in scaled]


def slow_divergence(student: list[list[float]], teacher: list[list[float]], temperature: float) -> float:
    """T^2 KL(teacher || student), mean over the rows."""
    total = 0.0
    for own, taught in zip(student, teacher, strict=True):
        q, p = slow_log_softmax(own, temperature), slow_log_softmax(taught, temperature)
        total += math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


ROWS = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4), min_size=3, max_size=3)


@given(student=ROWS, teacher=ROWS, temperature=st.floats(0.5, 10))
def test_distillation_is_the_divergence_from_the_teacher(
    student: list[list[float]], teacher: list[list[float]], temperature: float
) -> None:
    loss = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature).item()
    assert loss == pytest.approx(slow_divergence(student, teacher, temperature), rel=1e-3, abs=1e-3)
    assert distillation_loss(torch.tensor(teacher), torch.tensor(teacher), temperature).item() == pytest.approx(
        0, abs=1e-4
    )


def test_the_loss_is_shared_between_labels_and_teacher(zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    weight, temperature, smoothing = 0.3, 2.0, 0.1
    weights = zero.state_dict()
    begun = zero.with_weights({**weights, "head.bias": torch.linspace(-2, 2, 12)})
    settings = two_steps(
        distillation=weight, distillation_temperature=temperature, label_smoothing=smoothing, batch_size=6, accumulate=2
    )
    recipe = recipe_of(begun, settings, zero, seed=0, device="cpu")
    images, labels = torch.randn(6, 3, 64, 64), [0, 3, 3, 5, 11, 7]
    losses = list(recipe.losses(recipe.module, Batch(images, torch.tensor(labels)), 0))
    assert len(losses) == 2
    with torch.no_grad():
        student, teacher = begun.network(images).tolist(), zero.network(images).tolist()
    of_labels = 0.0
    for row, label in zip(student, labels, strict=True):
        logs = slow_log_softmax(row)
        of_labels -= ((1 - smoothing) * logs[label] + smoothing * sum(logs) / 12) / 6
    expected = (1 - weight) * of_labels + weight * slow_divergence(student, teacher, temperature)
    assert sum(loss.item() for loss in losses) == pytest.approx(expected, rel=1e-4)


def test_full_distillation_keeps_what_the_start_says(zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    settings = two_steps(optimizer="sgd", momentum=0.0, lr=0.03, weight_decay=0.0, epochs=2)
    images = few.reference.test
    first, saved, free = (
        sp.predict(classifier, images).logits
        for classifier in (
            zero,
            sp.finetune(zero, few, replace(settings, distillation=1.0)),
            sp.finetune(zero, few, settings),
        )
    )
    assert saved.argmax(1).tolist() == first.argmax(1).tolist()
    # Where teacher and network agree, there is no slope but rounding.
    assert np.abs(saved - first).max() < 0.01 * np.abs(free - first).max()
