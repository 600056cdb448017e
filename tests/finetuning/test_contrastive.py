"""Contrastive fine-tuning: captions, losses, both towers, and the heads that are rebuilt."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.predictions import collecting
from support.recipes import PROMPTS, Seen, close, differing, moved, parameters, text_of, two_steps
from support.text_towers import written_head
from torch import Tensor
from torch.nn import functional

import shiftproof as sp
from shiftproof.finetuning.recipes import Batch, Recipe, class_targets, recipe_of
from shiftproof.pretraining.loss import contrastive_loss

pytestmark = pytest.mark.slow


def slow_contrastive(
    images: list[list[float]], texts: list[list[float]], scale: float, shares: list[list[float]]
) -> float:
    """Both directions of the cross-entropy, written out: ``shares[i][j]`` of caption j are in image i."""
    total = 0.0
    turned = [list(column) for column in zip(*shares, strict=True)]
    for rows, columns, targets in ((images, texts, shares), (texts, images, turned)):
        losses = []
        for row, wanted in zip(rows, targets, strict=True):
            logits = [scale * math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in columns]
            top = max(logits)
            log_sum = top + math.log(math.fsum(math.exp(x - top) for x in logits))
            if sum(wanted):
                pairs = zip(wanted, logits, strict=True)
                losses.append(math.fsum(w / sum(wanted) * (log_sum - x) for w, x in pairs))
        total += sum(losses) / len(losses)
    return total / 2


def features_of(seed: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = functional.normalize(torch.randn(2, count, 5, generator=generator, dtype=torch.float64), dim=-1)
    return images, texts


@given(seed=st.integers(0, 1000), labels=st.lists(st.integers(0, 3), min_size=2, max_size=8), scale=st.floats(0.1, 90))
def test_captions_of_one_class_are_no_negatives_of_each_other(seed: int, labels: list[int], scale: float) -> None:
    images, texts = features_of(seed, len(labels))
    soft = functional.one_hot(torch.tensor(labels), 4).float()
    factor = torch.tensor(scale, dtype=torch.float64)
    loss = contrastive_loss(images, texts, factor, class_targets(soft, torch.tensor(labels))).item()
    shares = [[float(one == other) for other in labels] for one in labels]
    assert loss == pytest.approx(slow_contrastive(images.tolist(), texts.tolist(), scale, shares), rel=1e-6, abs=1e-9)
    if len(set(labels)) == len(labels):
        assert loss == pytest.approx(contrastive_loss(images, texts, factor).item(), rel=1e-9, abs=1e-12)


def contrastive(zero: sp.Classifier, batch_size: int) -> Recipe:
    return recipe_of(zero, two_steps(recipe="flyp", batch_size=batch_size), zero, seed=3, device="cpu")


def captioned(recipe: Recipe, labels: Tensor, step: int = 0) -> tuple[float, Tensor]:
    """The loss of a batch whose features are drawn, and the captions that were to be read."""
    images, texts = features_of(1, len(labels))
    read: list[Tensor] = []

    def model(pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        assert len(pixels) == len(tokens)
        read.append(tokens)
        return images, texts, torch.tensor(7.0), None

    (loss,) = recipe.losses(model, Batch(torch.zeros(len(labels), 3, 64, 64), labels), step)  # type: ignore[arg-type]
    return loss.item(), read[0]


def test_a_batch_is_captioned_by_its_classes_and_its_loss_counts_all_of_them(
    zero: sp.Classifier, tiny: sp.models.Clip
) -> None:
    labels = [0, 1, 0, 2, 0, 1, 5, 5]
    recipe = contrastive(zero, len(labels))
    images, texts = (features.tolist() for features in features_of(1, len(labels)))
    shares = [[float(one == other) for other in labels] for one in labels]
    drawn: Counter[str] = Counter()
    for step in range(40):
        loss, tokens = captioned(recipe, torch.tensor(labels), step)
        assert loss == pytest.approx(slow_contrastive(images, texts, 7.0, shares), rel=1e-5)
        for label, row in zip(labels, tokens, strict=True):
            messages = [prompt.format(zero.classes.names[label]) for prompt in PROMPTS]
            (reported,) = [
                prompt
                for prompt, text in zip(PROMPTS, messages, strict=True)
                if torch.equal(tiny.tokenizer([text])[0], row)
            ]
            drawn[reported] += 1
        assert torch.equal(tokens, captioned(recipe, torch.tensor(labels), step)[1])
    assert drawn[PROMPTS[0]] + drawn[PROMPTS[1]] == 320
    assert min(drawn.values()) > 120  # 160 +- 4 standard deviations


def test_both_towers_move_and_the_text_tower_writes_the_head(
    flyp: sp.Classifier, zero: sp.Classifier, tiny: sp.models.Clip
) -> None:
    assert flyp.text is not None
    assert differing(text_of(tiny), flyp.text) == text_of(tiny).keys()
    assert moved(zero, flyp) == parameters(zero) - {"head.bias"}
    assert flyp.head == "rebuilt"
    assert flyp.logit_scale == pytest.approx(flyp.text["logit_scale"].exp().item())
    head = flyp.network.head
    torch.testing.assert_close(head.weight.detach(), written_head(tiny, PROMPTS, flyp.text, flyp.classes.names))
    assert not head.bias.any()


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_the_ensemble_merges_both_towers_and_then_writes_the_head(
    flyp: sp.Classifier, zero: sp.Classifier, tiny: sp.models.Clip, alpha: float
) -> None:
    assert flyp.text is not None
    merged = sp.wise_ft(zero, flyp, alpha)
    start, text = text_of(tiny), {}
    for name, tensor in flyp.text.items():
        text[name] = (1 - alpha) * start[name] + alpha * tensor
    rows = written_head(tiny, PROMPTS, text, zero.classes.names)
    torch.testing.assert_close(merged.network.head.weight.detach(), rows, rtol=1e-4, atol=1e-4)
    assert merged.text is not None
    close(dict(merged.text), text)
    assert (merged.head, merged.logit_scale) == ("rebuilt", pytest.approx(text["logit_scale"].exp().item()))
    first, second = zero.state_dict(), flyp.state_dict()
    for name in parameters(zero) - {"head.weight", "head.bias"}:
        between = (1 - alpha) * first[name] + alpha * second[name]
        torch.testing.assert_close(merged.state_dict()[name], between, rtol=1e-5, atol=1e-6)
    # The average of two heads is another.
    of_heads = (1 - alpha) * first["head.weight"] + alpha * second["head.weight"]
    assert (of_heads - rows).norm() > 100 * (merged.network.head.weight - rows).norm()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_the_path_are_the_two_bit_for_bit(flyp: sp.Classifier, zero: sp.Classifier, alpha: float) -> None:
    end = flyp if alpha else zero
    assert moved(end, sp.wise_ft(zero, flyp, alpha)) == set()
    assert sp.wise_ft(zero, flyp, alpha).logit_scale == end.logit_scale


def test_the_sweep_runs_what_the_ensemble_is(flyp: sp.Classifier, zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    saved: dict[tuple[float, str], np.ndarray] = {}
    path = sp.sweep_alpha(zero, flyp, few, (0.0, 0.3, 1.0), keep=collecting(saved))
    for alpha, (name, images) in itertools.product(path.alphas, few.test_sets.items()):
        expected = sp.predict(sp.wise_ft(zero, flyp, alpha), images)
        assert np.array_equal(saved[alpha, name], expected.logits)
        assert path.at(alpha).accuracy[name] == np.mean(expected.logits.argmax(1) == images.labels)


def test_the_text_tower_survives_the_way_to_disk(flyp: sp.Classifier, zero: sp.Classifier, tmp_path: Path) -> None:
    again = sp.load_classifier(sp.save_classifier(flyp, tmp_path / "flyp"))
    assert flyp.text is not None and again.text is not None
    assert differing(dict(flyp.text), dict(again.text)) == set()
    assert moved(sp.wise_ft(zero, flyp, 0.4), sp.wise_ft(zero, again, 0.4)) == set()
    merged = sp.wise_ft(zero, flyp, 0.4)
    saved = sp.load_classifier(sp.save_classifier(merged, tmp_path / "merged"))
    assert merged.text is not None and saved.text is not None
    assert differing(dict(merged.text), dict(saved.text)) == set()
    # A classifier whose head nobody wrote keeps none.
    sp.save_classifier(zero, tmp_path / "zero")
    assert {path.name for path in (tmp_path / "zero").iterdir()} == {"classifier.json", "model.safetensors"}


def test_a_start_whose_text_tower_is_not_known_is_refused(zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    weights = zero.state_dict()
    name = "encoder.head.proj.weight"
    other = zero.with_weights({**weights, name: weights[name] * 1.001})
    with pytest.raises(sp.InputError, match=r"encoder is not that of 'tiny'.*Start from the zero-shot classifier"):
        sp.finetune(other, few, two_steps(recipe="flyp"))
    with pytest.raises(sp.InputError, match=r"no text tower.*another finetune\.recipe"):
        sp.finetune(replace(zero, prompts=(), source="timm:resnet18"), few, two_steps(recipe="flyp"))
    with pytest.raises(sp.InputError, match="unknown model 'elsewhere'"):
        sp.finetune(replace(zero, source="elsewhere"), few, two_steps(recipe="flyp"))


def test_an_average_of_both_towers_writes_the_head(
    zero: sp.Classifier, few: sp.ShiftSuite, tiny: sp.models.Clip, seen: Seen
) -> None:
    decay = 0.7
    tuned = sp.finetune(zero, few, two_steps(recipe="flyp", lr=3e-3, epochs=2, ema_decay=decay))
    steps = len(seen.after)
    assert steps == 4
    expected = {}
    for name in seen.after[0]:
        shares = [(1 - decay) * decay ** (steps - 1 - t) / (1 - decay**steps) for t in range(steps)]
        terms = [share * weights[name].double() for share, weights in zip(shares, seen.after, strict=True)]
        expected[name.removeprefix("model.")] = torch.stack(terms).sum(0).float()
    text = {name: tensor for name, tensor in expected.items() if not name.startswith("visual.")}
    visual = {name.replace("visual.", "encoder."): t for name, t in expected.items() if name.startswith("visual.")}
    assert tuned.text is not None
    close(dict(tuned.text), text)
    close({name: tuned.state_dict()[name] for name in visual}, visual)
    rows = written_head(tiny, PROMPTS, tuned.text, zero.classes.names)
    torch.testing.assert_close(tuned.network.head.weight.detach(), rows)
