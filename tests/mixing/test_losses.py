"""Losses that take mixed labels: soft cross-entropy and the contrastive loss."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.mixings import ANY, FLOATS, FOLLOWED, SEEDS, same_bits, seeded
from torch import Tensor
from torch.nn import functional

import shiftproof as sp
from shiftproof.mixing.methods import Mixing, SmoothMix
from shiftproof.mixing.targets import contrastive_targets, mix_targets, soft_cross_entropy


def slow_cross_entropy(logits: list[float], targets: list[float]) -> float:
    high = max(logits)
    log_sum = high + math.log(sum(math.exp(z - high) for z in logits))
    return -sum(t * (z - log_sum) for t, z in zip(targets, logits, strict=True))


@given(seed=SEEDS, count=st.integers(1, 5), classes=st.integers(1, 5), dtype=st.sampled_from(FLOATS))
def test_soft_cross_entropy_is_its_formula(seed: int, count: int, classes: int, dtype: torch.dtype) -> None:
    generator = seeded(seed)
    logits = (5 * torch.randn(count, classes, generator=generator)).to(dtype)
    targets = torch.rand(count, classes, generator=generator)
    targets /= targets.sum(1, keepdim=True)
    expected = [slow_cross_entropy(z, t) for z, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    each = soft_cross_entropy(logits, targets, reduction="none")
    assert (each.dtype, each.shape) == (torch.float32, (count,))
    assert each.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert soft_cross_entropy(logits, targets).item() == pytest.approx(sum(expected) / count, rel=1e-4, abs=1e-5)


@given(seed=SEEDS, smoothing=st.floats(0, 1), mixing=FOLLOWED)
def test_label_smoothing_is_torch_s(seed: int, smoothing: float, mixing: Mixing) -> None:
    generator = seeded(seed)
    logits, labels = torch.randn(5, 4, generator=generator), torch.randint(4, (5,), generator=generator)
    plan = mixing.plan(5, (3, 3), generator)
    loss = soft_cross_entropy(logits, mix_targets(labels, plan, 4, label_smoothing=smoothing))
    hard = mix_targets(labels, plan, 4)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, hard, label_smoothing=smoothing))
    unmixed = replace(mixing, probability=0.0).plan(5, (3, 3), generator)
    loss = soft_cross_entropy(logits, mix_targets(labels, unmixed, 4, label_smoothing=smoothing))
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels, label_smoothing=smoothing))


@pytest.mark.parametrize(
    ("logits", "targets"), [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((2, 3), (2,)), ((3,), (3,)), ((2, 3, 4), (2, 3, 4))]
)
def test_losses_of_other_shapes_are_refused(logits: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(sp.InputError, match=re.escape(f"logits {logits} and targets {targets}")):
        soft_cross_entropy(torch.zeros(logits), torch.zeros(targets))


@given(mixing=ANY, count=st.integers(1, 6), seed=SEEDS, classes=st.none() | st.integers(1, 3))
def test_contrastive_targets_say_how_much_of_each_caption_is_there(
    mixing: Mixing, count: int, seed: int, classes: int | None
) -> None:
    plan = mixing.plan(count, (4, 4), seeded(seed))
    labels = None if classes is None else torch.randint(classes, (count,), generator=seeded(seed))
    result = contrastive_targets(plan, labels)
    assert (result.dtype, result.shape) == (torch.float32, (count, count))
    torch.testing.assert_close(result.sum(1), torch.ones(count))
    same = (torch.arange(count) if labels is None else labels).tolist()
    for i, row in enumerate(result.tolist()):
        weight, partner = plan.weights[i].item(), int(plan.partners[i])
        for j, share in enumerate(row):
            own = (same[j] == same[i]) / same.count(same[i])
            others = (same[j] == same[partner]) / same.count(same[partner])
            assert share == pytest.approx(weight * own + (1 - weight) * others, abs=1e-6)


def test_contrastive_targets_of_unmixed_images_are_their_own_captions() -> None:
    plan = SmoothMix(probability=0.0).plan(4, (4, 4), seeded(0))
    assert torch.equal(contrastive_targets(plan), torch.eye(4))
    pairs = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    assert torch.equal(contrastive_targets(plan, torch.tensor([7, 2, 7, 5])), pairs)
    with pytest.raises(sp.InputError, match=r"classes have the shape \(3,\)"):
        contrastive_targets(plan, torch.arange(3))


def towers(count: int, seed: int) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, count, 5, generator=seeded(seed), dtype=torch.float64)
    images, texts = functional.normalize(drawn, dim=-1)
    return images, texts


def slow_contrastive_loss(similarities: list[list[float]], targets: list[list[float]]) -> float:
    """Both directions' mean cross-entropy with rows of sum 1, without those of sum 0."""
    directions = []
    for logits, wanted in ((similarities, targets), (list(zip(*similarities)), list(zip(*targets)))):  # noqa: B905
        rows = [
            slow_cross_entropy(list(z), [share / sum(t) for share in t])
            for z, t in zip(logits, wanted, strict=True)
            if sum(t) > 0
        ]
        directions.append(sum(rows) / len(rows))
    return sum(directions) / 2


@given(mixing=ANY, count=st.integers(2, 6), seed=SEEDS, scale=st.floats(0.1, 50), classes=st.none() | st.integers(1, 3))
def test_the_contrastive_loss_takes_mixed_targets(
    mixing: Mixing, count: int, seed: int, scale: float, classes: int | None
) -> None:
    images, texts = towers(count, seed)
    labels = None if classes is None else torch.randint(classes, (count,), generator=seeded(seed))
    targets = contrastive_targets(mixing.plan(count, (4, 4), seeded(seed)), labels)
    loss = sp.pretraining.contrastive_loss(images, texts, torch.tensor(scale, dtype=torch.float64), targets)
    similarities = (scale * images @ texts.T).tolist()
    expected = slow_contrastive_loss(similarities, targets.double().tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@given(count=st.integers(2, 6), seed=SEEDS, scale=st.floats(0.1, 50))
def test_identity_targets_are_the_plain_contrastive_loss(count: int, seed: int, scale: float) -> None:
    images, texts = towers(count, seed)
    factor = torch.tensor(scale, dtype=torch.float64)
    plain = sp.pretraining.contrastive_loss(images, texts, factor)
    torch.testing.assert_close(sp.pretraining.contrastive_loss(images, texts, factor, torch.eye(count)), plain)
    logits, own = factor * images @ texts.T, torch.arange(count)
    expected = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    assert same_bits(sp.pretraining.contrastive_loss(images, texts, factor, None), expected)
    assert same_bits(plain, expected)


def test_captions_that_are_in_no_image_do_not_count() -> None:
    images, texts = towers(3, 0)
    factor = torch.tensor(4.0, dtype=torch.float64)
    targets = torch.tensor([[0.4, 0.0, 0.6], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    loss = sp.pretraining.contrastive_loss(images, texts, factor, targets)
    expected = slow_contrastive_loss((factor * images @ texts.T).tolist(), targets.double().tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(expected)


def test_swapped_weights_change_the_contrastive_loss() -> None:
    plan = SmoothMix().plan(4, (8, 8), seeded(0))
    images = torch.eye(4) * plan.weights[:, None] + torch.eye(4)[plan.partners] * (1 - plan.weights[:, None])
    images, texts, factor = functional.normalize(images, dim=1), torch.eye(4), torch.tensor(5.0)
    right = sp.pretraining.contrastive_loss(images, texts, factor, contrastive_targets(plan))
    swapped = replace(plan, weights=1 - plan.weights)
    assert sp.pretraining.contrastive_loss(images, texts, factor, contrastive_targets(swapped)) > right + 0.05
    # Rows are images and columns captions.
    turned = sp.pretraining.contrastive_loss(images, texts, factor, contrastive_targets(plan).T)
    assert (turned - right).abs() > 0.05


def test_contrastive_targets_of_another_shape_are_refused() -> None:
    images, texts = towers(3, 0)
    with pytest.raises(sp.InputError, match=r"targets have the shape \(3, 2\); they must be \(3, 3\)"):
        sp.pretraining.contrastive_loss(images, texts, torch.tensor(1.0), torch.ones(3, 2))
