"""Contrastive fine-tuning on mixed images: how much of each caption is in each image, written out for every pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import two_steps
from torch import Tensor
from torch.nn import functional

import shiftproof as sp
from shiftproof.finetuning import recipes
from shiftproof.finetuning.recipes import Batch, recipe_of
from shiftproof.mixing.plans import MixPlan
from shiftproof.pretraining.loss import contrastive_loss

METHODS: dict[str, Callable[[], Any]] = {
    "smoothmix": lambda: sp.SmoothMix(kind="circle"),
    "cutmix": sp.mixing.CutMix,
    "mixup": sp.mixing.MixUp,
    "cutout": sp.mixing.Cutout,
    "half of the images": lambda: sp.SmoothMix(probability=0.5),
}


def slow_shares(plan: MixPlan, labels: list[int]) -> list[list[float]]:
    """How much of caption j is in image i, pair by pair: a class's share is divided equally among its captions."""
    shares = [[0.0] * len(labels) for _ in labels]
    for i, own_class in enumerate(labels):
        weight, partner_class = float(plan.weights[i]), labels[int(plan.partners[i])]
        for j, caption in enumerate(labels):
            if caption == own_class:
                shares[i][j] += weight / labels.count(own_class)
            if caption == partner_class:
                shares[i][j] += (1 - weight) / labels.count(partner_class)
    return shares


class Recorded:
    """The targets that reach the loss, and the captions that the text tower reads."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.targets = self.tokens = torch.empty(0)
        patched.setattr(recipes, "contrastive_loss", self.loss)

    def loss(self, images: Tensor, texts: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
        self.targets = targets
        return contrastive_loss(images, texts, scale, targets)

    def towers(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        self.tokens = tokens
        generator = torch.Generator().manual_seed(1)
        features = functional.normalize(torch.randn(2, len(images), 5, generator=generator), dim=-1)
        return features[0], features[1], torch.tensor(7.0), None


def one_loss(zero: sp.Classifier, labels: list[int], plan: MixPlan, recorded: Recorded) -> float:
    recipe = recipe_of(zero, two_steps(recipe="flyp", batch_size=len(labels)), zero, seed=3, device="cpu")
    batch = Batch(torch.zeros(len(labels), 3, 64, 64), torch.tensor(labels), plan)
    (loss,) = recipe.losses(recorded.towers, batch, 0)  # type: ignore[arg-type]
    return loss.item()


@pytest.mark.parametrize("method", METHODS)
def test_every_pair_of_a_mixed_batch_has_its_exact_share(
    zero: sp.Classifier, tiny: sp.models.Clip, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, recorded = [0, 0, 0, 1, 2, 3, 3, 5], Recorded(monkeypatch)
    plan = METHODS[method]().plan(len(labels), (64, 64), torch.Generator().manual_seed(2))
    one_loss(zero, labels, plan, recorded)
    expected = torch.tensor(slow_shares(plan, labels))
    torch.testing.assert_close(recorded.targets, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(recorded.targets.sum(1), torch.ones(len(labels)))
    for label, row in zip(labels, recorded.tokens, strict=True):  # an image's caption names its own class
        captions = [prompt.format(zero.classes.names[label]) for prompt in zero.prompts]
        assert any(torch.equal(tiny.tokenizer([caption])[0], row) for caption in captions)


def test_the_loss_is_the_cross_entropy_with_these_shares(zero: sp.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, recorded = [0, 0, 0, 1, 2, 3], Recorded(monkeypatch)
    plan = sp.mixing.MixUp().plan(len(labels), (64, 64), torch.Generator().manual_seed(2))
    loss = one_loss(zero, labels, plan, recorded)
    images, texts, scale, _ = recorded.towers(torch.zeros(len(labels), 3, 64, 64), recorded.tokens)
    logits, shares = (scale * images @ texts.T).tolist(), slow_shares(plan, labels)
    total = 0.0
    for rows, targets in ((logits, shares), (list(zip(*logits, strict=True)), list(zip(*shares, strict=True)))):
        for row, wanted in zip(rows, targets, strict=True):
            log_shares = functional.log_softmax(torch.tensor(row), dim=0).tolist()
            total -= sum(w / sum(wanted) * x for w, x in zip(wanted, log_shares, strict=True)) / len(labels) / 2
    assert loss == pytest.approx(total, rel=1e-5)


@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=9),
    seed=st.integers(0, 1000),
    method=st.sampled_from(sorted(METHODS)),
)
def test_contrastive_targets_are_the_shares_of_every_pair(labels: list[int], seed: int, method: str) -> None:
    plan = METHODS[method]().plan(len(labels), (8, 8), torch.Generator().manual_seed(seed))
    targets = sp.mixing.contrastive_targets(plan, torch.tensor(labels))
    torch.testing.assert_close(targets, torch.tensor(slow_shares(plan, labels)), rtol=1e-5, atol=1e-6)


def test_two_processes_divide_a_share_among_the_captions_of_both(
    zero: sp.Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process mixes its own images; the captions of a class may be in the share of the other process."""
    parts = [[0, 0, 1, 2], [0, 3, 1, 1]]
    plans = [sp.mixing.MixUp().plan(4, (64, 64), torch.Generator().manual_seed(seed)) for seed in (2, 5)]
    recipe = recipe_of(zero, two_steps(recipe="flyp", batch_size=8), zero, seed=3, device="cpu")
    sent: list[list[Tensor]] = [[], []]

    def targets_of(index: int) -> Tensor:
        monkeypatch.setattr(recipes, "process_index", lambda: index)
        return recipe._targets(Batch(torch.zeros(4, 3, 64, 64), torch.tensor(parts[index]), plans[index]))  # type: ignore[attr-defined]

    for index in range(2):

        def record(rows: Tensor, index: int = index) -> Tensor:
            sent[index].append(rows)
            return rows

        monkeypatch.setattr(recipes, "gathered", record)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(recipes, "caption_shares", lambda *_: torch.empty(0))
            targets_of(index)
    both = iter([torch.cat(pair) for pair in zip(*sent, strict=True)])
    monkeypatch.setattr(recipes, "gathered", lambda _: next(both))
    result = targets_of(1)
    labels = parts[0] + parts[1]
    expected = [[0.0] * 8 for _ in labels]
    for i, own_class in enumerate(labels):
        plan, place = plans[i // 4], i % 4
        weight, partner_class = float(plan.weights[place]), parts[i // 4][int(plan.partners[place])]
        for j, caption in enumerate(labels):
            expected[i][j] = weight * (caption == own_class) / labels.count(own_class) + (1 - weight) * (
                caption == partner_class
            ) / labels.count(partner_class)
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-5, atol=1e-6)
