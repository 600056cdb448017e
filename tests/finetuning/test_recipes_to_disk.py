"""Every recipe from the settings to a saved classifier and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.recipes import Trained, differing, moved, two_steps

import shiftproof as sp
from shiftproof.finetuning.settings import RECIPES
from shiftproof.models.classifier import Network

pytestmark = pytest.mark.slow

HEADS = {"frozen-head": "frozen", "lora": "frozen", "flyp": "rebuilt"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_all_the_way(
    zero: sp.Classifier, few: sp.ShiftSuite, tuned_by: Trained, tmp_path: Path, recipe: str
) -> None:
    before = {name: tensor.clone() for name, tensor in zero.state_dict().items()}
    trainable = [p.requires_grad for p in zero.network.parameters()]
    tuned = sp.finetune(zero, few, two_steps(recipe=recipe))
    assert tuned.head == HEADS.get(recipe, "trained")
    assert tuned.training["settings"]["recipe"] == recipe
    assert type(tuned.network) is Network
    assert not any(module.training for module in tuned.network.modules())
    assert all(p.requires_grad for p in tuned.network.parameters())
    assert moved(zero, tuned)
    assert moved(tuned, tuned_by(recipe)) == set()
    # The start stays as it was.
    assert differing(before, zero.state_dict()) == set()
    assert [p.requires_grad for p in zero.network.parameters()] == trainable
    assert not any(module.training for module in zero.network.modules())
    path = sp.sweep_alpha(zero, tuned, few, 3)
    middle = sp.wise_ft(zero, tuned, 0.5)
    for alpha, classifier in ((0.0, zero), (0.5, middle), (1.0, tuned)):
        predictions = sp.predict(classifier, few.shifts[0].data)
        assert path.at(alpha).accuracy["sketch"] == np.mean(predictions.logits.argmax(1) == predictions.labels)
        again = sp.load_classifier(sp.save_classifier(classifier, tmp_path / f"{alpha}"))
        assert sp.models.fingerprint(again) == sp.models.fingerprint(classifier)
        assert np.array_equal(sp.predict(again, few.shifts[0].data).logits, predictions.logits)
        assert (again.head, again.logit_scale) == (classifier.head, classifier.logit_scale)
    assert json.loads(json.dumps(tuned.training)) == sp.load_classifier(tmp_path / "1.0").training
