"""Directories that version 0.1.0 wrote are resumed and reported by this version.

``fixtures/version-0.1.0.zip`` holds a finished run with a diagnosis, a training run that was stopped half-way, the same
training run to its end, and a study of two runs, with the data and the start that they used. ``written_by.py`` in it
is the script that wrote them.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import shiftproof as sp
from shiftproof.cli.app import app
from shiftproof.studies.file import StudyFile

pytestmark = pytest.mark.usefixtures("blank_figures")

ARCHIVE = Path(__file__).parent / "fixtures" / "version-0.1.0.zip"


@pytest.fixture
def written_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the previous version left it, as the working directory, which its paths are relative to."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results_in(file: Path) -> dict[str, Any]:
    """A summary without what may differ between two versions."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name not in ("seconds", "versions")}


def entries_of(before: Any, after: Any) -> Any:
    """What a file holds now, without the entries that the previous version did not write."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {name: entries_of(before[name], value) for name, value in after.items() if name in before}
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [entries_of(*pair) for pair in zip(before, after, strict=True)]
    return after


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_finished_run_is_resumed_with_the_same_results(written_before: Path) -> None:
    run = written_before / "run"
    path, results = (run / "path.json").read_bytes(), lines_of(run / "results.jsonl")
    rules = results_in(run / "rules.json")
    summary, stages = results_in(run / "summary.json"), (run / "stages.json").read_bytes()
    answer = CliRunner().invoke(app, ["run", "run/run.yaml", "--out", "run", "--resume"])
    assert answer.exit_code == 0, answer.output
    assert entries_of(summary, results_in(run / "summary.json")) == summary
    assert (run / "stages.json").read_bytes() == stages, "a finished stage was done again"
    assert (run / "path.json").read_bytes() == path
    assert entries_of(results, lines_of(run / "results.jsonl")) == results
    # Every file of a record states its schema now.
    assert results_in(run / "rules.json") == {"schema": 1, **rules}


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_sweep_is_finished(written_before: Path) -> None:
    run = written_before / "run"
    summary = results_in(run / "summary.json")
    stages = json.loads((run / "stages.json").read_text(encoding="utf-8"))
    done = list(stages)[: list(stages).index("sweep")]
    (run / "stages.json").write_text(json.dumps({name: stages[name] for name in done}), encoding="utf-8")
    for name in ("path.json", "rules.json", "results.jsonl", "summary.json", "diagnosis.json"):
        (run / name).unlink()
    (run / "predictions" / "alpha-0.50" / "sketch.npz").unlink()
    sp.run_pipeline(sp.RunFile.read(run / "run.yaml"), run, resume=True)
    again = results_in(run / "summary.json")
    assert entries_of(summary["alpha_path"], again["alpha_path"]) == summary["alpha_path"]
    assert again["models"].keys() == summary["models"].keys()
    for model, by_set in summary["models"].items():
        for name, entry in by_set.items():
            assert again["models"][model][name]["accuracy"] == entry["accuracy"]


@pytest.mark.slow
def test_a_diagnosis_is_kept_and_reported(written_before: Path) -> None:
    run = written_before / "run"
    before = json.loads((run / "diagnosis.json").read_text(encoding="utf-8"))
    assert before["layers"]
    answer = CliRunner().invoke(app, ["report", "run"])
    assert answer.exit_code == 0, answer.output
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "layers-sketch" in page or (run / "figures" / "layers-sketch.png").is_file()
    # The classifiers are recognised as the same, so what took long stays.
    record = sp.diagnose_run(run, ())
    assert sp.records.to_json(record)["layers"] == before["layers"]


def test_a_training_run_is_continued_to_the_same_weights(written_before: Path) -> None:
    out = written_before / "training"
    sp.runs.run_finetune(sp.RunFile.read(out / "run.yaml"), out, resume=True)
    continued, whole = (sp.load_classifier(written_before / name).state_dict() for name in ("training", "trained"))
    assert continued.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(continued[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_study_is_resumed_with_the_same_results(written_before: Path) -> None:
    study = written_before / "study"
    before = results_in(study / "study.json")
    record = sp.studies.run_study(StudyFile.read(written_before / "study.yaml"), study, resume=True)
    assert len(record.members) == 2
    assert entries_of(before, results_in(study / "study.json")) == before
    assert (study / "figures" / "study.png").is_file()


def test_classifiers_are_loaded_and_other_requests_refused(written_before: Path) -> None:
    ends = [sp.load_classifier(written_before / "run" / name) for name in ("zero_shot", "fine_tuned")]
    middle = sp.wise_ft(*ends, 0.5).state_dict()
    saved = sp.load_classifier(written_before / "run" / "ensemble").state_dict()
    assert all(torch.equal(middle[name], saved[name]) for name in saved)
    other = sp.RunFile.read(written_before / "run" / "run.yaml").model_copy(update={"seed": 1})
    with pytest.raises(sp.InputError, match="seed"):
        sp.run_pipeline(other, written_before / "run", resume=True)


def test_a_run_file_of_the_user_is_not_taken_for_a_training_record(written_before: Path) -> None:
    out = written_before / "mine"
    out.mkdir()
    (out / "run.yaml").write_text("model: start\n", encoding="utf-8")
    settings = sp.RunFile.read(written_before / "training" / "run.yaml")
    with pytest.raises(sp.InputError, match=r"already holds 'run\.yaml', which no training run wrote"):
        sp.runs.run_finetune(settings, out, overwrite=True)
    assert (out / "run.yaml").read_text(encoding="utf-8") == "model: start\n"
