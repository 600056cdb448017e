"""Runs on the emoji suite, as it ships and exported as folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.commands import Call, assert_mistake

import shiftproof as sp
from shiftproof.runs.file import DEMO_FILE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_figures")]

EMOJI = ("lemon", "pineapple", "tiger", "sailboat")


# The embedded suite, cut down.


@pytest.fixture(scope="session")
def few_emoji() -> sp.ShiftSuite:
    """Four classes of the emoji suite, with two of its shifts."""
    suite = sp.load_suite("emoji")
    classes = sp.ClassSpace(EMOJI, tuple(name.replace("_", " ") for name in EMOJI))

    def cut(images: sp.ImageSet) -> sp.ImageSet:
        saved = [i for i, label in enumerate(images.labels) if images.classes.ids[label] in EMOJI]
        return images.subset(saved).relabelled(classes)

    reference = sp.data.Reference(
        suite.reference.name, *(cut(getattr(suite.reference, split)) for split in ("train", "validation", "test"))
    )
    shifts = tuple(
        replace(shift, data=cut(shift.data)) for shift in suite.shifts if shift.name in ("sketch", "noise-3")
    )
    return sp.ShiftSuite("emoji", classes, reference, shifts)


def test_an_exported_suite_runs_as_folders(
    few_emoji: sp.ShiftSuite, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tiny: sp.models.Clip
) -> None:
    monkeypatch.setattr("shiftproof.runs.stages.load_suite", lambda name, seed: few_emoji)
    printed = call("export-suite", "emoji", "--out", "exported")
    sets = [few_emoji.reference.train, few_emoji.reference.validation, *few_emoji.test_sets.values()]
    total = sum(map(len, sets))
    assert (printed.code, printed.out) == (0, f"{total} images under exported\n")
    assert {p.relative_to("exported").as_posix() for p in Path("exported").glob("*/*")} == {
        *(f"reference/{split}" for split in ("train", "validation", "test")),
        "shifts/sketch",
        "shifts/noise-3",
    }
    again = call("export-suite", "emoji", "--out", "exported")
    assert again.code == 2
    assert "exported is not empty" in again.err

    settings = {
        "model": "tiny",
        "suite": {
            "reference": {split: f"folder:exported/reference/{split}" for split in ("train", "validation", "test")},
            "shifts": {
                "sketch": {"data": "folder:exported/shifts/sketch"},
                "noise-3": {"data": "folder:exported/shifts/noise-3", "kind": "synthetic"},
            },
        },
        "finetune": {"epochs": 2, "batch_size": 10},
        "alphas": 2,
    }
    Path("emoji.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert call("run", "emoji.yaml").code == 0
    summary = json.loads(Path("runs/emoji/summary.json").read_text(encoding="utf-8"))
    # The files hold the very pixels: the zero-shot model is as right on them as on the suite itself.
    zero = sp.zero_shot_classifier(tiny, few_emoji.classes)
    names = {"colour": "reference", "sketch": "sketch", "noise-3": "noise-3"}
    for name, images in few_emoji.test_sets.items():
        entry = summary["models"]["zero_shot"][names[name]]
        assert entry["n"] == len(images)
        assert entry["accuracy"] == sp.evaluation.accuracy(sp.predict(zero, images).logits, images.labels)


@pytest.mark.long
def test_the_demo_runs_its_own_file_with_the_seed_asked_for(
    few_emoji: sp.ShiftSuite, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftproof.runs.inputs.load_suite", lambda name, seed: few_emoji)
    printed = call("demo", "--seed", "3")
    assert printed.code == 0, printed.err
    out = Path("runs/demo-3")
    assert sp.RunFile.read(out / "run.yaml") == sp.RunFile.read(DEMO_FILE, ["seed=3"])
    assert (out / "report.html").is_file()
    assert f"report: {out / 'report.html'}" in printed.out
    # The groups of the renditions that pretraining saw and did not see are told apart.
    assert "withheld" in printed.out
    assert_mistake(call("demo", "--seed", "3"), "already holds a run")
    assert call("demo", "--seed", "3", "--overwrite", "--set", "alphas=[0.5]", "--set", "finetune.epochs=1").code == 0
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["alpha_path"][0]["alpha"] == 0.5
