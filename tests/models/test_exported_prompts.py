"""Exports of classifiers whose classes have prompts of their own, in the formats that keep the text tower."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.exported import CLASSES, assert_usable, small_clip

import shiftproof as sp
from shiftproof.models.export.card import write_model_card
from shiftproof.models.export.exporting import export_classifier

PROMPTS = {"lemon": ["a sour fruit", "one {}"], "n02": ["a {} on a tree"], "pear": ["a pear"], "plum": ["a {}"]}


@pytest.mark.parametrize("to", ["open_clip", "transformers"])
def test_prompts_by_class_are_exported(to: str, tmp_path: Path) -> None:
    prompts = {**PROMPTS, "fig": ["a fig", "a ripe fig", "figs"], "kiwi": ["a {} cut in half"]}
    classifier = sp.zero_shot_classifier(sp.load_clip(small_clip(tmp_path / "clip")), CLASSES, prompts)
    export = export_classifier(classifier, to, tmp_path / "exported")
    assert not (export.directory / "head.safetensors").exists()
    assert_usable(classifier, export, tmp_path)
    card = write_model_card(classifier, export).read_text(encoding="utf-8")
    assert "The prompts of the first class, lemon, are “a sour fruit”, “one lemon”." in card
