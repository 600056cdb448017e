"""A run on your own folders, and predictions from what it saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import Call, CommandResult, run_in_process
from support.predictions import softmax

import shiftproof as sp

pytestmark = pytest.mark.slow


# The whole way, each step in a process of its own.


def test_a_run_and_then_predictions_from_what_it_saved(folders: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(folders, tmp_path / "fruit")
    (tmp_path / "run.yaml").write_text(
        """
model: open_clip:shiftproof-tiny
random_weights: true
suite:
  reference: {train: "folder:fruit/train", validation: "folder:fruit/validation", test: "folder:fruit/test"}
  shifts: {sketch: {data: "folder:fruit/sketch"}}
finetune: {epochs: 2, batch_size: 9, lr: 1e-3}
alphas: 3
"""
    )
    ended = run_in_process("run", "run.yaml", "--set", "finetune.epochs=3", "--seed", "5", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    out = tmp_path / "runs" / "run"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["seed"] == 5
    assert sp.RunFile.read(out / "run.yaml").finetune.epochs == 3
    assert Path("runs", "run", "report.html").as_posix() in ended.out
    for model in ("zero_shot", "fine_tuned", "ensemble"):
        for entry in summary["models"][model].values():
            assert f"{100 * entry['accuracy']:.1f}" in ended.out

    # Nothing but the classifier's own directory is left.
    shutil.move(out / "ensemble", tmp_path / "mine")
    shutil.rmtree(tmp_path / "runs")
    images = ["fruit/test/lemon/lemon-0.png", "fruit/sketch/pear/pear-1.png"]
    classifier = sp.load_classifier(tmp_path / "mine")
    data = sp.data.load_set(f"folder:{tmp_path}/fruit/test", classifier.classes)
    logits = sp.predict(classifier, data).logits[data.ids.index("lemon/lemon-0.png")].tolist()
    expected = sorted(zip(softmax(logits), ["lemon", "pear", "red apple"], strict=True), reverse=True)

    printed = run_in_process("predict", "mine", *images, "--json", cwd=tmp_path)
    assert (printed.code, printed.err) == (0, "")
    answers = json.loads(printed.out)
    assert [answer["image"] for answer in answers] == images
    assert [entry["class"] for entry in answers[0]["top"]] == [name for _, name in expected]
    assert [entry["probability"] for entry in answers[0]["top"]] == pytest.approx([p for p, _ in expected], rel=1e-4)
    assert sum(entry["probability"] for entry in answers[1]["top"]) == pytest.approx(1)

    plain = call("predict", "mine", *images, "--top", "2")
    assert (plain.code, plain.err) == (0, "")
    lines = plain.out.splitlines()
    assert (lines[0], lines[3], len(lines)) == (*images, 6)
    for line, (probability, name) in zip(lines[1:3], expected, strict=False):
        assert line.split(maxsplit=2) == [f"{100 * probability:.1f}", "%", name]


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    ended = run_in_process("zeroshot", "tiny", "--reference", "folder:fotos", "--test", "folder:fotos", cwd=tmp_path)
    assert ended == CommandResult(
        2, "", "shiftproof: the folder fotos does not exist. Check the path after 'folder:'.\n"
    )
