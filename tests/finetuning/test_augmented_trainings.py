"""Fine-tuning with augmentations: a resumed training draws the same, and older files are still understood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.classifiers import tensor_bytes
from support.resumed_trainings import SUITE, dropout_classifier, eight_steps, stopped_after, trained, unbroken

import shiftproof as sp
from shiftproof.diagnosis.baselines import require_trained_with

AUGMENT = ("flip", "randaugment", "color-jitter", "random-erasing")


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    stopped_after(tmp_path, 4, augment=AUGMENT)
    assert tensor_bytes(trained(tmp_path, augment=AUGMENT).state_dict()) == unbroken(augment=AUGMENT)
    assert unbroken(augment=AUGMENT) != unbroken()


def test_checkpoints_of_other_augmentations_are_refused(tmp_path: Path) -> None:
    stopped_after(tmp_path, 4, augment=("flip",))
    with pytest.raises(sp.InputError, match="these differ: 'augment'"):
        trained(tmp_path, augment=AUGMENT)
    with pytest.raises(sp.InputError, match="these differ: 'augment'"):
        trained(tmp_path)


def test_checkpoints_and_records_without_augmentations_are_those_of_earlier_versions(tmp_path: Path) -> None:
    stopped_after(tmp_path, 4)
    (state,) = sorted(tmp_path.glob("step-*"))[-1].glob("state.json")
    assert "augment" not in json.loads(state.read_text())["origin"]
    tuned = trained(tmp_path)
    assert tensor_bytes(tuned.state_dict()) == unbroken()
    assert "augment" not in tuned.training["settings"]
    saved = replace(tuned, training=json.loads(json.dumps(tuned.training)))
    require_trained_with(saved, SUITE.classes, eight_steps(), 0, tmp_path, "")


def test_the_features_of_a_linear_probe_are_those_of_augmented_crops() -> None:
    plain, augmented = (
        sp.finetune(dropout_classifier(), SUITE, sp.FinetuneSettings(recipe="linear-probe", augment=augment))
        for augment in ((), AUGMENT)
    )
    assert tensor_bytes(plain.state_dict()) != tensor_bytes(augmented.state_dict())
    assert augmented.training["settings"]["augment"] == AUGMENT
