"""The samples of a run: which answers are right, and whose maps are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import shiftproof as sp
from shiftproof.data.sets import array_set
from shiftproof.errors import InputError
from shiftproof.evaluation.predictions import Predictions, open_predictions, save_predictions
from shiftproof.records.runs import MODELS
from shiftproof.report.samples import read_samples
from shiftproof.runs import samples

CLASSES = sp.ClassSpace(("n1", "n2", "n3"), ("crane", "crane", "pear"))  # the bird and the machine


def suite() -> sp.ShiftSuite:
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    images = array_set("test", CLASSES, ["a", "b", "c"], np.arange(3), lambda: pixels)
    return sp.ShiftSuite("own", CLASSES, sp.data.Reference("photo", images, images, images), ())


def test_another_class_of_the_same_name_is_not_the_right_answer(tmp_path: Path) -> None:
    named = np.eye(3, dtype=np.float32)[[1, 1, 0]]  # for a, b and c
    save_predictions(Predictions.of(("a", "b", "c"), np.arange(3), named, None, None), tmp_path / "logits.npz")
    logits = open_predictions(tmp_path / "logits.npz")
    samples.write_samples(suite(), {model: {"photo": logits} for model in MODELS}, tmp_path / "samples", seed=0)
    answers = {sample.id: sample.answers["ensemble"] for sample in read_samples(tmp_path)}
    assert {name: (answer.prediction, answer.right) for name, answer in answers.items()} == {
        "a": ("crane", False),
        "b": ("crane", True),
        "c": ("crane", False),
    }


def test_maps_of_an_earlier_classifier_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "photo-00-ensemble.png").write_bytes(b"a map")

    def refused(*_: object, **__: object) -> None:
        raise InputError("no maps of this encoder")

    monkeypatch.setattr(samples, "map_examples", refused)
    samples.write_maps(suite(), {}, tmp_path / "maps", seed=0)
    assert not (tmp_path / "maps").exists()
