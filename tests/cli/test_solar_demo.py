"""``shiftproof demo --suite solar-cells``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import Call

import shiftproof as sp
from shiftproof.runs.file import DEMO_FILES


def test_its_run_file_reads() -> None:
    run_file = sp.RunFile.read(DEMO_FILES["solar-cells"])
    assert (run_file.model, run_file.head, run_file.suite) == ("lite0", "probe", "solar-cells")
    assert run_file.finetune.augment


def test_a_suite_without_a_demo_is_refused(call: Call) -> None:
    done = call("demo", "--suite", "solar-cell")
    assert done.code == 2
    assert "Did you mean 'solar-cells'?" in done.err


@pytest.mark.long
def test_the_demo_runs_and_reports_macro_accuracy_and_groups(
    call: Call, blank_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = sp.load_suite("solar-cells")
    splits = (getattr(suite.reference, split) for split in ("train", "validation", "test"))
    few = sp.data.Reference("monocrystalline", *(images.subset(range(0, len(images), 20)) for images in splits))
    small = sp.ShiftSuite(suite.name, suite.classes, few, suite.shifts[:2])
    monkeypatch.setattr("shiftproof.runs.inputs.load_suite", lambda name, seed: small)
    tiny = ["limit=8", "alphas=[0.5]", "finetune.epochs=1", "finetune.batch_size=10"]
    done = call("demo", "--suite", "solar-cells", "--seed", "3", *(part for key in tiny for part in ("--set", key)))
    assert done.code == 0, done.err
    out = Path("runs/demo-solar-cells-3")
    assert "functional-certain" in done.out
    assert f"report: {out / 'report.html'}" in done.out
    assert "macro accuracy" in done.out
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["models"]["ensemble"]["polycrystalline"]["n"] == 8
    assert summary["models"]["ensemble"]["polycrystalline"]["groups"]
    for entry in summary["models"]["ensemble"].values():
        low, high = entry["metric_intervals"]["macro accuracy"]
        assert low <= entry["metrics"]["macro accuracy"] <= high
    diagnosis = json.loads((out / "diagnosis.json").read_text(encoding="utf-8"))
    assert all(0 <= entry["macro_accuracy"]["value"] <= 1 for entry in diagnosis["by_class"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Macro accuracy is the mean of the accuracies on the classes" in page and "defective-" in page
