"""A fine-tuned encoder with a zero-shot head for classes that it was not fine-tuned on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.classifiers import logits_of, weight_bytes
from support.text_towers import contrastive, nudged
from support.transformers_models import write_model

import shiftproof as sp
from shiftproof.models.text_towers import source_clip, with_text, with_zero_shot_head

OLD = sp.ClassSpace.from_ids(["lemon", "pear"])
NEW = sp.ClassSpace.from_ids(["red_apple", "plum", "lemon"])


@pytest.fixture(scope="module")
def zero(tiny: sp.models.Clip) -> sp.Classifier:
    return sp.zero_shot_classifier(tiny, OLD)


@pytest.fixture(scope="module")
def tuned(zero: sp.Classifier) -> sp.Classifier:
    """The start with other weights, as training end to end leaves it."""
    weights = nudged(zero.state_dict(), torch.Generator().manual_seed(0))
    return zero.with_weights(weights, head="trained", training={"seed": 3})


def test_the_head_is_that_of_the_start_and_the_encoder_stays(tiny: sp.models.Clip, tuned: sp.Classifier) -> None:
    classifier = with_zero_shot_head(tuned, NEW, "short")
    expected = sp.zero_shot_classifier(tiny, NEW, "short")
    assert torch.equal(classifier.network.head.weight, expected.network.head.weight)
    before, after = weight_bytes(tuned), weight_bytes(classifier)
    assert all(after[name] == before[name] for name in before if name.startswith("encoder."))
    assert (classifier.classes, classifier.prompts, classifier.head) == (NEW, expected.prompts, "zero-shot")
    assert classifier.parents[0]["fingerprint"] == sp.models.fingerprint(tuned)
    assert classifier.training == tuned.training
    assert not torch.equal(
        logits_of(classifier, torch.ones(1, 3, 64, 64)), logits_of(expected, torch.ones(1, 3, 64, 64))
    )


def test_a_fine_tuned_text_tower_writes_the_head(tiny: sp.models.Clip, zero: sp.Classifier, tmp_path: Path) -> None:
    flyp = contrastive(zero, tiny, 1)
    classifier = with_zero_shot_head(flyp, NEW)
    assert flyp.text is not None
    expected = sp.zero_shot_classifier(with_text(tiny, flyp.text), NEW)
    assert torch.equal(classifier.network.head.weight, expected.network.head.weight)
    assert classifier.logit_scale == pytest.approx(flyp.text["logit_scale"].exp().item())
    read = sp.load_classifier(sp.save_classifier(classifier, tmp_path / "found"))
    assert read.head == "rebuilt"
    assert weight_bytes(with_zero_shot_head(read, OLD)) == weight_bytes(with_zero_shot_head(flyp, OLD))


def test_a_zero_shot_classifier_stays_one_that_can_be_fine_tuned_contrastively(
    tiny: sp.models.Clip, zero: sp.Classifier
) -> None:
    classifier = with_zero_shot_head(zero, NEW)
    assert weight_bytes(classifier) == weight_bytes(sp.zero_shot_classifier(tiny, NEW))
    assert source_clip(classifier).name == "tiny"


def test_random_weights_are_those_of_the_seed_of_the_training() -> None:
    clip = sp.load_clip("open_clip:shiftproof-tiny", seed=3)
    tuned = replace(sp.zero_shot_classifier(clip, OLD), training={"seed": 3})
    expected = sp.zero_shot_classifier(clip, NEW)
    assert torch.equal(with_zero_shot_head(tuned, NEW).network.head.weight, expected.network.head.weight)


def test_a_model_of_transformers_keeps_its_bias(tmp_path: Path) -> None:
    clip = sp.load_clip(write_model(tmp_path / "siglip", "siglip"))
    classifier = with_zero_shot_head(sp.zero_shot_classifier(clip, OLD), NEW)
    assert weight_bytes(classifier) == weight_bytes(sp.zero_shot_classifier(clip, NEW))


def test_without_a_text_tower_the_way_out_is_named(zero: sp.Classifier, tmp_path: Path) -> None:
    own = replace(zero, prompts=(), source="timm:resnet18", head="own")
    with pytest.raises(sp.InputError, match=r"'timm:resnet18' has no text tower.*Choose a classifier"):
        with_zero_shot_head(own, NEW)
    gone = replace(zero, source=f"hf:{tmp_path}/gone")
    with pytest.raises(sp.InputError, match="cannot be loaded"):
        with_zero_shot_head(gone, NEW)


def test_another_model_under_the_same_name_is_refused(zero: sp.Classifier, tmp_path: Path) -> None:
    other = replace(zero, source=write_model(tmp_path / "clip", "clip"))
    with pytest.raises(sp.InputError, match="not of the same architecture"):
        with_zero_shot_head(other, NEW)
