"""``diagnose backgrounds``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.commands import Call, CommandResult

import shiftproof as sp
from shiftproof.records.backgrounds import BackgroundStudy
from shiftproof.records.codec import from_json
from shiftproof.report.windows import (
    background_table,
)
from shiftproof.runs import interventions as diagnosing

pytestmark = pytest.mark.slow


def background_in(folder: str | Path) -> BackgroundStudy:
    return from_json(BackgroundStudy, json.loads(Path(folder, "backgrounds.json").read_text(encoding="utf-8")))


def test_backgrounds_of_ones_own_images(wnids: Path, tiny: sp.models.Clip, call: Call) -> None:
    data = ["--data", f"folder:{wnids}/images", "--masks", f"{wnids}/masks"]
    ids = [path.name for path in sorted((wnids / "images").iterdir())]
    sp.save_classifier(
        sp.zero_shot_classifier(tiny, sp.ClassSpace(tuple(ids[::-1]), ("apple", "pear", "lemon"))), "zero"
    )
    ended = call("diagnose", "backgrounds", "zero", *data, "--out", "found")  # its classes have another order
    assert ended.code == 0, ended.err
    study = background_in("found")
    table = background_table(study)
    assert table.title in ended.out
    cells = re.findall(r"[+−]?\d+\.\d", " ".join(table.rows[0][1:]))
    assert all(cell in ended.out for cell in cells)
    assert len(cells) == 18
    zero, images = sp.load_classifier("zero"), sp.data.load_set(f"folder:{wnids}/images")
    predictions = sp.predict(zero, images.relabelled(zero.classes))
    accuracy = float((predictions.logits.argmax(1) == predictions.labels).mean())
    assert study.models["zero"].variants["original"].accuracy == pytest.approx(accuracy)
    assert study.chance == pytest.approx(1 / 3)
    assert "numbers: " in ended.out

    ended = call("diagnose", "backgrounds", "zero", *data, "--out", "found")
    assert (ended.code, "already holds a diagnosis" in ended.err) == (2, True)
    own = [
        "--model",
        "timm:test_resnet",
        "--head",
        "own",
        "--random-weights",
    ]  # a thousand classes, three of which are there
    assert call("diagnose", "backgrounds", *own, *data, "--out", "found", "--overwrite").code == 0
    again = background_in("found")
    assert (list(again.models), again.chance) == (["timm:test_resnet"], 1 / 1000)
    assert again.models["timm:test_resnet"].variants["mixed-random"].n == 9


def test_backgrounds_on_emoji(tiny: sp.models.Clip, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = sp.load_suite("emoji")
    some = sp.ClassSpace(suite.classes.ids[:4], suite.classes.names[:4])
    test = suite.reference.test.of_classes(some)
    part = sp.ShiftSuite("emoji", some, sp.data.Reference("colour", test, test, test), ())
    monkeypatch.setattr(diagnosing, "load_suite", lambda name, seed: part)
    sp.save_classifier(sp.zero_shot_classifier(tiny, suite.classes), "whole")  # knows all 267
    ended = call("diagnose", "backgrounds", "whole", "--images", "12", "--seed", "2", "--out", "found")
    assert ended.code == 0, ended.err
    study = background_in("found")
    assert (study.set, study.seed) == ("the reference of emoji", 2)
    record = study.models["whole"]
    assert {variant.n for variant in record.variants.values()} == {12}
    assert record.variants["original"].accuracy > 0.7
    assert record.gap == 0  # all stand on white


def test_backgrounds_need_a_model_and_masks(folders: Path, call: Call) -> None:
    ended = call("diagnose", "backgrounds", "--out", "found")
    assert ended == CommandResult(
        2, "", "shiftproof: there is no model to diagnose. Name classifiers, or models with --model.\n"
    )
    ended = call("diagnose", "backgrounds", "--model", "tiny", "--data", f"folder:{folders}/test", "--out", "found")
    assert (ended.code, ended.out) == (2, "")
    assert "has no object masks" in ended.err
