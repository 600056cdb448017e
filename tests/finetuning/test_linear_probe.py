"""The linear probe against Newton's method, and fine-tuning that begins with its head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from support.recipes import Seen, close, differing, moved, small_transformer, two_convolutions, two_steps
from torch import Tensor
from torch.nn import functional

import shiftproof as sp
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.loading import crop_draws, normalise, resized_crop, to_unit_range
from shiftproof.finetuning import probe
from shiftproof.finetuning.probe import PENALTIES, Head, logistic_head
from shiftproof.seeding import child_generator, child_seed

pytestmark = pytest.mark.slow


def slow_head(features: np.ndarray, labels: Sequence[int], start: np.ndarray, penalty: float) -> np.ndarray:
    """Newton's method on the (K, D + 1) weights in float64, halving steps that do not help."""
    inputs = np.concatenate([features, np.ones((len(features), 1))], 1)
    count, classes = len(inputs), len(start)
    targets = np.eye(classes)[list(labels)]

    def loss_at(theta: np.ndarray) -> float:
        total = 0.0
        for row, label in zip(inputs, labels, strict=True):
            logits = [float(row @ weights) for weights in theta]
            top = max(logits)
            total += top + math.log(math.fsum(math.exp(x - top) for x in logits)) - logits[label]
        return total / count + penalty / 2 * float(((theta - start) ** 2).sum())

    theta, value = start.copy(), loss_at(start)
    for _ in range(100):
        logits = inputs @ theta.T
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        gradient = (shares - targets).T @ inputs / count + penalty * (theta - start)
        hessian = penalty * np.eye(theta.size)
        for row, share in zip(inputs, shares, strict=True):
            hessian += np.kron(np.diag(share) - np.outer(share, share), np.outer(row, row)) / count
        step = np.linalg.solve(hessian, gradient.flatten()).reshape(theta.shape)
        while (reached := loss_at(theta - step)) > value and np.abs(step).max() > 1e-12:
            step /= 2
        if reached >= value:
            break
        theta, value = theta - step, reached
    return theta


@pytest.mark.parametrize("penalty", [10.0, *PENALTIES])
def test_the_head_is_the_one_that_newton_s_method_finds(penalty: float) -> None:
    # As zero-shot heads are: features of length 1, rows that are long.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    rows = 20 * functional.normalize(torch.randn(3, 4, generator=generator), dim=1)
    features = functional.normalize(rows[labels] / 20 + torch.randn(24, 4, generator=generator), dim=1)
    start = Head(rows, torch.tensor([0.5, -0.5, 0.0]))
    origin = np.concatenate([start.weight.numpy(), start.bias.numpy()[:, None]], 1).astype(float)
    expected = slow_head(features.numpy().astype(float), labels.tolist(), origin, penalty)
    # Where the search begins decides nothing.
    for begin in (None, Head(-rows, torch.ones(3))):
        result = logistic_head(features, labels, start, penalty, begin)
        theta = np.concatenate([result.weight.numpy(), result.bias.numpy()[:, None]], 1)
        assert np.linalg.norm(theta - expected) < 0.02 * np.linalg.norm(expected - origin)
        assert (result.weight.dtype, result.bias.dtype) == (torch.float32, torch.float32)


def slope(features: Tensor, labels: Tensor, start: Head, penalty: float, head: Head) -> float:
    """The norm of the objective's gradient."""
    weight, bias = head.weight.double().requires_grad_(), head.bias.double().requires_grad_()
    loss = functional.cross_entropy(features.double() @ weight.T + bias, labels)
    loss = loss + penalty / 2 * ((weight - start.weight).square().sum() + (bias - start.bias).square().sum())
    return math.sqrt(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, (weight, bias))))


@settings_of(max_examples=10)
@given(seed=st.integers(0, 1000), penalty=st.sampled_from([1.0, *PENALTIES[:4]]), classes=st.integers(2, 5))
def test_at_the_head_the_objective_is_flat(seed: int, penalty: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(20, 6, generator=generator)
    labels = torch.randint(classes, (20,), generator=generator)
    start = Head(torch.randn(classes, 6, generator=generator), torch.randn(classes, generator=generator))
    result = logistic_head(features, labels, start, penalty)
    assert slope(features, labels, start, penalty, result) < 1e-3 * slope(features, labels, start, penalty, start)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_on_real_features_the_search_ends_at_the_minimum(
    zero: sp.Classifier, few: sp.ShiftSuite, penalty: float
) -> None:
    with torch.inference_mode():
        features = zero.network.features(next(evaluation_batches(few.reference.train, zero.preprocessing, 24)))
    features, labels = features.clone(), torch.as_tensor(few.reference.train.labels)
    start = Head(zero.network.head.weight.detach(), zero.network.head.bias.detach())
    result = logistic_head(features, labels, start, penalty)
    far = math.hypot((result.weight - start.weight).norm().item(), (result.bias - start.bias).norm().item())
    # The objective is as strongly convex as the penalty says, so that the minimum is no farther than slope / penalty.
    assert slope(features, labels, start, penalty, result) / penalty < 0.05 * far


def test_a_huge_penalty_keeps_the_start() -> None:
    start = Head(torch.randn(3, 5), torch.randn(3))
    result = logistic_head(torch.randn(30, 5), torch.arange(30) % 3, start, 1e12)
    torch.testing.assert_close(result.weight, start.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.bias, start.bias, rtol=1e-6, atol=1e-6)


def closed(images: sp.ImageSet) -> sp.ImageSet:
    def read(_: int) -> np.ndarray:
        raise AssertionError("it was read")

    return replace(images, read=read, in_memory=False)


def test_the_penalty_is_the_largest_that_is_best_on_the_validation_split(
    few: sp.ShiftSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, suite = two_convolutions(few.classes), few
    counts = [2, 4, 4, 1, 1]  # images of the first classes in the validation split
    validation = suite.reference.train.subset([2 * k + i % 2 for k, count in enumerate(counts) for i in range(count)])
    closed_test, closed_shift = closed(suite.reference.test), closed(suite.shifts[0].data)
    reference = replace(suite.reference, validation=validation, test=closed_test)
    suite = replace(suite, reference=reference, shifts=(replace(suite.shifts[0], data=closed_shift),))
    settings: list[float] = []

    def favours(features: Tensor, labels: Tensor, origin: Head, penalty: float, **_: Any) -> Head:
        """The n-th penalty's head says that everything is of the n-th class."""
        assert torch.equal(origin.weight, start.network.head.weight)
        settings.append(penalty)
        return Head(torch.zeros(12, 8), 1.0 * (torch.arange(12) == len(settings) - 1))

    monkeypatch.setattr(probe, "logistic_head", favours)
    tuned = sp.finetune(start, suite, two_steps(recipe="linear-probe"))
    assert settings == sorted(PENALTIES, reverse=True)
    assert tuned.network.head.bias.tolist() == [0.0, 1.0, *[0.0] * 10]
    trials = tuned.training["probe"]
    assert [trial["penalty"] for trial in trials] == settings
    assert [trial["validation"] for trial in trials] == [count / 12 for count in [*counts, 0, 0, 0]][: len(settings)]
    assert moved(start, tuned) == {"head.weight", "head.bias"}
    assert (tuned.training["history"], tuned.head) == ([], "trained")


def test_the_probe_sees_the_features_of_random_crops(few: sp.ShiftSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    start, train = small_transformer(few.classes), few.reference.train
    given_ones: list[tuple[Tensor, Tensor]] = []

    def watched(features: Tensor, labels: Tensor, origin: Head, penalty: float, **_: Any) -> Head:
        given_ones.append((features, labels))
        return origin

    monkeypatch.setattr(probe, "logistic_head", watched)
    sp.finetune(start, few, two_steps(recipe="linear-probe", crop_scale=(0.3, 0.6)), seed=5)
    features, labels = given_ones[0]
    count, views = len(train), len(features) // len(train)
    assert views >= 2
    assert labels.tolist() == train.labels.tolist() * views
    # One batch: the draws of all views are those of its places.
    draws = crop_draws(views * count, child_generator(child_seed(5, "probe"), "crops", 0))
    rows = []
    for place in range(views * count):
        crop = resized_crop(train.read(place % count), start.preprocessing, (0.3, 0.6), draws[place])
        image = normalise(to_unit_range([crop]), start.preprocessing)
        with torch.no_grad():
            rows.append(functional.normalize(start.network.encoder(image), dim=-1)[0])
    torch.testing.assert_close(features, torch.stack(rows), rtol=1e-4, atol=1e-5)
    first, second = features[:count], features[count : 2 * count]
    assert (first - second).abs().amax(1).min() > 1e-3


def test_lp_ft_begins_with_the_probe_s_head(zero: sp.Classifier, few: sp.ShiftSuite, seen: Seen) -> None:
    probed = sp.finetune(zero, few, two_steps(recipe="linear-probe"), seed=2)
    tuned = sp.finetune(zero, few, two_steps(recipe="lp-ft", l2_to_start=1e12, batch_size=24), seed=2)
    assert moved(zero, probed) == {"head.weight", "head.bias"}
    assert differing(seen.before[0], probed.state_dict()) == set()
    assert tuned.training["probe"] == probed.training["probe"]
    assert [parent["fingerprint"] for parent in tuned.parents] == [sp.models.fingerprint(zero)]
    # It is drawn to the start, where the alpha path begins, and not to the probe.
    close(tuned.state_dict(), zero.state_dict())
