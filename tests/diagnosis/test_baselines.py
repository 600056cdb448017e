"""Networks to compare with: untrained, and trained on the reference alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support.windows import CLASSES

import shiftproof as sp
from shiftproof.diagnosis.baselines import train_from_scratch, untrained

pytestmark = pytest.mark.slow

# Networks that saw the reference only


def fruit_suite(folders: Path) -> sp.ShiftSuite:
    return sp.own_suite({split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}, {})


def test_an_untrained_network_has_the_starts_shape_and_weights_of_its_own(tiny: sp.models.Clip) -> None:
    start = sp.zero_shot_classifier(tiny, CLASSES)
    before = sp.models.fingerprint(start)
    first, again, other = (untrained(start, seed=seed) for seed in (0, 0, 1))
    assert sp.models.fingerprint(start) == before
    assert sp.models.fingerprint(first) == sp.models.fingerprint(again) != sp.models.fingerprint(other)
    for saved in ("architecture", "classes", "preprocessing"):
        assert getattr(first, saved) == getattr(start, saved)
    assert (first.head, first.parents, first.alpha, dict(first.training)) == ("trained", (), None, {})
    lengths = first.network.head.weight.norm(dim=1).tolist()
    assert lengths == pytest.approx([first.logit_scale] * 3, rel=1e-5)
    random = {name: tensor for name, tensor in first.state_dict().items() if tensor.ndim > 1}
    assert random.keys() == {name for name, tensor in start.state_dict().items() if tensor.ndim > 1}
    for name, tensor in random.items():
        assert not torch.equal(tensor, start.state_dict()[name]), name
        assert not torch.equal(tensor, other.state_dict()[name]), name


def test_an_untrained_timm_network_depends_on_the_seed(timm_resnet: sp.Classifier) -> None:
    first, again, other = (untrained(timm_resnet, seed=seed).network.encoder.state_dict() for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
        assert tensor.ndim != 4 or not torch.equal(tensor, other[name]), name


def test_training_from_scratch_learns_the_reference(folders: Path, tiny: sp.models.Clip) -> None:
    suite = fruit_suite(folders)
    start = sp.zero_shot_classifier(tiny, suite.classes)
    settings = sp.FinetuneSettings(epochs=25, lr=4e-3, batch_size=18, warmup_steps=3, weight_decay=0.05)
    result = train_from_scratch(start, suite, settings)
    right = sum(
        sp.evaluation.accuracy(sp.predict(result, images).logits, images.labels) * len(images)
        for images in (suite.reference.train, suite.reference.test)
    )
    assert right >= 19  # of 27; blind guessing has that many once in 10,000 times
    assert result.parents[0]["source"] == "untrained tiny"


def test_training_from_scratch_never_reads_the_starts_weights(folders: Path, tiny: sp.models.Clip) -> None:
    suite = fruit_suite(folders)
    start = sp.zero_shot_classifier(tiny, suite.classes)
    nothing = start.with_weights({name: torch.full_like(x, math.nan) for name, x in start.state_dict().items()})
    settings = sp.FinetuneSettings(epochs=1, lr=1e-3, batch_size=9)
    first, second = (train_from_scratch(begun, suite, settings, seed=2) for begun in (start, nothing))
    assert (
        sp.models.fingerprint(first) == sp.models.fingerprint(second) != sp.models.fingerprint(untrained(start, seed=2))
    )


# Named models and classifier directories, as a user calls them


@pytest.fixture(scope="module")
def timm_resnet() -> sp.Classifier:
    """A small timm model with random weights and its own head; treat it as immutable."""
    return sp.own_head_classifier(sp.load_encoder("timm:test_resnet"))
